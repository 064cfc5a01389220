"""The command `zart`: an edge like any other, built on what `zart` offers to every program."""
