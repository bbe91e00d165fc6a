"""What the doctor looks at, one file a region of the machine; `examination.py` has the list."""
