"""runs.duckdb: the readable index of the runs' logs.

Ingest is idempotent on (run_id, seq): deleting the file and ingesting again gives the same tables. The view
`moral_map(run_id, model, trait, seed, round, stage, alpha, care, social_norms, coherence, n_vignettes,
finished_at, agreement, frame, agreement_low, agreement_high, chance)` and the table `profiles` (all seven
foundations) are for others to rely on; times are in seconds since the epoch.
"""

from steer_heal.records import StoreBusy
from steer_heal.runs.store.database import StoreUnreadable
from steer_heal.runs.store.store import Store
