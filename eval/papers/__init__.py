"""Tables of the papers whose methods are built here, run again where public data allow, beside the papers' numbers."""
