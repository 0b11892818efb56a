"""The typed recipe: `schema` says what may stand in it, `load` reads it and reports all faults."""
