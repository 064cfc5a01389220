"""`zart doctor`: what is wrong, and what to do about it.

A check is a look, a named statement of `zart/_postgres/sql`, and a judgement of what it gave: a function of rows that
returns findings. The checks of each file stand in one table at its end; `examination.py` takes all of them.
"""
