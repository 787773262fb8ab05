"""Models and sampling jobs from plain values, as a command line or a TOML file gives them.

`models` finds a denoiser by its name, `folders` in one of diffusers, `tables` makes jobs, `images` reads pictures."""
