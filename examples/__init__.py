"""Programs to read in a minute and to run: `make example-onboarding`, `make example-sleep`, `make demo`."""
