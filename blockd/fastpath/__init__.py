"""The Rust half: bytes in, verdict and bytes out. Its surface is typed in ``_native.pyi``."""

from blockd.fastpath._native import (
    LATENCY_BOUNDS,
    Fastpath,
    Snapshot,
    check_patterns,
    compile_rules,
    end_with_parent,
    fold_rule_name,
    is_public_suffix,
    line_of,
    list_changes,
    list_names,
    load,
    proxy_header,
    read_list,
    read_presentation,
)

__all__ = [
    "LATENCY_BOUNDS",
    "Fastpath",
    "Snapshot",
    "check_patterns",
    "compile_rules",
    "end_with_parent",
    "fold_rule_name",
    "is_public_suffix",
    "line_of",
    "list_changes",
    "proxy_header",
    "list_names",
    "load",
    "read_list",
    "read_presentation",
]
