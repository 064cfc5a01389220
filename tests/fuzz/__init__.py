"""Bad input in bulk: names, values, addresses and hand-edited rows that no sane caller would give.

Whatever comes in through whichever door, one of three things may happen: it is taken and comes back exactly as it was
given; it is refused by an error of this library that says what is wrong; or the one execution that it belongs to ends
in a state that says why. Never a traceback at a command line, never another execution that has to wait for it, never
anything in the database that was not asked for.

`make test` runs a fixed set of examples; `make fuzz` draws new ones for some minutes and prints the seed that repeats
them.
"""
