"""Crashes at every boundary: a corpus of workflows, and an explorer that breaks workers off at named points."""
