"""One command a question; results are written by the programs here, never by hand."""
