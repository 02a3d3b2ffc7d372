"""What is raised for what was asked. These travel inside a package, where the rest of Emuflow is not."""


class OptionsError(ValueError):
    """An image or a token cannot be drawn so from this model; the message names the option, its value and what would do."""
