"""What tests stand on: a real daemon as a process, real and scripted servers, DNS questions."""
