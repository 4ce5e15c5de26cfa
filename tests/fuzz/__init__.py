"""Damaged input of every kind, made by chance: each case ends in a result or an error of ours, soon, in little memory.

A module named `damaged_*.py` holds mutators and names its classes of cases in `CLASSES`; see `FuzzClass`. The default
tests run 300 cases of each class (`test_fuzz.py`). Without an end, each time with other cases:

    python -m tests.fuzz --minutes 10 --seed 5 --class headers --keep failures
"""
