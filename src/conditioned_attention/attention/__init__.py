"""Implementations of attention followed by a head transform.  None imports another; `functional` picks one."""
