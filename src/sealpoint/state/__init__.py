"""What this machine remembers: of chains that it dumped, the newest of each workload, which moved trees it let run."""
