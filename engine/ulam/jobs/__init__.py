"""Models and sampling jobs from plain values, as a command line or a TOML file gives them.

`models` finds a denoiser by its name, `tables` makes jobs from keys and values, `images` reads known pictures."""
