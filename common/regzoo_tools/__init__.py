"""Tools for releases and studies: checks, packages, exports, and all commands other than `register`."""
