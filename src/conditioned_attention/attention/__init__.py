"""Implementations of attention followed by a head transform.  They do not import each other; `functional` picks one."""
