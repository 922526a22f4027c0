"""Ring 3, the paper: experiments to jobs, records, statistics, claims, figures."""
