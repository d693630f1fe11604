"""Published protocols as named presets of settings; ``base`` says what one is, and each other file
is one."""
