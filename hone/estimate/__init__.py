"""What a recipe takes of memory and disk: computed without weights, and measured."""
