"""One module for each command: it reads the clock, the user and the environment, and passes them down."""
