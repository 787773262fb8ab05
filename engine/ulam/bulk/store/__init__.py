"""What lies on disk: units under their keys, whole or absent, and who works on which.

`store` has the files, `unit` the bytes of one, `leases` and `owners` who has a unit in hand and whether it lives."""
