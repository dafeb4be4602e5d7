"""What releases and studies need: checks, packages, exports and the commands beside `register`."""
