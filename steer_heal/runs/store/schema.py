"""The tables and views of runs.duckdb, as migrations: each applied once, in order, and never changed. A view
that a later one makes anew stands there alone."""

TABLES = """
CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY,
    name VARCHAR, model VARCHAR, trait VARCHAR, seed BIGINT, preset VARCHAR, rounds INTEGER,
    is_example BOOLEAN, status VARCHAR, round INTEGER, stage VARCHAR,
    progress DOUBLE, eta DOUBLE, started_at DOUBLE, finished_at DOUBLE, retention DOUBLE, message VARCHAR,
    settings JSON, vignette_set VARCHAR,
    anchor_time DOUBLE, anchor_progress DOUBLE,
    last_seq BIGINT, log_bytes BIGINT
);
CREATE TABLE events (
    run_id VARCHAR, seq BIGINT, time DOUBLE, kind VARCHAR, round INTEGER, data JSON,
    PRIMARY KEY (run_id, seq)
);
CREATE TABLE rounds (
    run_id VARCHAR, round INTEGER, retention DOUBLE, kept INTEGER, made INTEGER, c_star DOUBLE,
    adapter VARCHAR, seconds DOUBLE, finished_at DOUBLE,
    PRIMARY KEY (run_id, round)
);
CREATE TABLE profiles (
    run_id VARCHAR, round INTEGER, stage VARCHAR, alpha DOUBLE,
    care DOUBLE, fairness DOUBLE, loyalty DOUBLE, authority DOUBLE, sanctity DOUBLE, liberty DOUBLE,
    social_norms DOUBLE, coherence DOUBLE, n_vignettes INTEGER,
    perplexity DOUBLE, perplexity_ratio DOUBLE, repetition DOUBLE, looping DOUBLE, finished_at DOUBLE,
    PRIMARY KEY (run_id, round, stage)
);
CREATE TABLE vignette_scores (
    run_id VARCHAR, round INTEGER, stage VARCHAR, vignette VARCHAR, foundation VARCHAR,
    care DOUBLE, fairness DOUBLE, loyalty DOUBLE, authority DOUBLE, sanctity DOUBLE, liberty DOUBLE,
    social_norms DOUBLE, mass DOUBLE, prefill_nll DOUBLE, order_tv DOUBLE, score JSON,
    PRIMARY KEY (run_id, round, stage, vignette)
);
CREATE TABLE completions (
    run_id VARCHAR, round INTEGER, idx INTEGER, alpha DOUBLE, prompt VARCHAR, text VARCHAR,
    kept BOOLEAN, scores JSON, reasons VARCHAR[],
    PRIMARY KEY (run_id, round, idx)
);
CREATE TABLE answers (
    run_id VARCHAR, round INTEGER, idx INTEGER, prompt VARCHAR, text VARCHAR,
    PRIMARY KEY (run_id, round, idx)
);
CREATE TABLE steps (
    run_id VARCHAR, round INTEGER, step INTEGER, total INTEGER,
    loss DOUBLE, nll DOUBLE, divergence DOUBLE, lr DOUBLE,
    PRIMARY KEY (run_id, round, step)
);
"""

TRAINING = """
ALTER TABLE steps ADD COLUMN barrier DOUBLE;
ALTER TABLE steps ADD COLUMN distil DOUBLE;
ALTER TABLE steps ADD COLUMN held_out_nll DOUBLE;
ALTER TABLE rounds ADD COLUMN facts JSON;
"""

WORTH = """
ALTER TABLE profiles ADD COLUMN agreement DOUBLE;
ALTER TABLE profiles ADD COLUMN frame VARCHAR;
ALTER TABLE profiles ADD COLUMN agreement_low DOUBLE;
ALTER TABLE profiles ADD COLUMN agreement_high DOUBLE;
ALTER TABLE profiles ADD COLUMN chance DOUBLE;
ALTER TABLE profiles ADD COLUMN order_tv DOUBLE;
"""

CONTROLS = """
CREATE OR REPLACE VIEW controls AS
    WITH held AS (
        SELECT run_id, 'random' AS kind, unnest(CAST(data -> '$.random' AS JSON[])) AS p
        FROM events WHERE events.kind = 'controls'
        UNION ALL
        SELECT run_id, 'persona' AS kind, data -> '$.persona' AS p FROM events WHERE events.kind = 'controls'
    )
    SELECT run_id, kind,
           CAST(p ->> '$.Care' AS DOUBLE) AS care, CAST(p ->> '$.Fairness' AS DOUBLE) AS fairness,
           CAST(p ->> '$.Loyalty' AS DOUBLE) AS loyalty, CAST(p ->> '$.Authority' AS DOUBLE) AS authority,
           CAST(p ->> '$.Sanctity' AS DOUBLE) AS sanctity, CAST(p ->> '$.Liberty' AS DOUBLE) AS liberty,
           CAST(p ->> '$.SocialNorms' AS DOUBLE) AS social_norms,
           CASE WHEN p ->> '$.Care' IS NULL THEN p END AS poles
    FROM held WHERE json_type(p) = 'OBJECT';
"""
"""What random directions, and the persona as text, do to the base of a run that asked for them."""

HEALTH = """
ALTER TABLE profiles ADD COLUMN relevance DOUBLE;
ALTER TABLE profiles ADD COLUMN relevance_ratio DOUBLE;
ALTER TABLE profiles ADD COLUMN text_verdict VARCHAR;
ALTER TABLE profiles ADD COLUMN answers_verdict VARCHAR;
CREATE OR REPLACE VIEW moral_map AS
    SELECT p.run_id, r.model, r.trait, r.seed, p.round, p.stage, p.alpha, p.care, p.social_norms,
           p.coherence, p.n_vignettes, p.finished_at, p.agreement, p.frame, p.agreement_low,
           p.agreement_high, p.chance, p.relevance, p.text_verdict, p.answers_verdict
    FROM profiles p JOIN runs r USING (run_id);
"""

DAMAGE = """
ALTER TABLE profiles ADD COLUMN diversity DOUBLE;
ALTER TABLE answers ADD COLUMN steered VARCHAR;
"""

OWN_AXIS = f"ALTER TABLE profiles ADD COLUMN poles JSON;{CONTROLS}"
"""Of a run whose trait is measured on its own axis the columns of the foundations are null, and `poles` holds
the mean p of the two poles, in `profiles` and in the view `controls`, which is made anew in older files."""

PRINTED = """
ALTER TABLE answers ADD COLUMN word VARCHAR;
ALTER TABLE answers ADD COLUMN steered_word VARCHAR;
"""

SWEEPS = """
CREATE VIEW sweep_cells AS
    WITH cells AS (
        SELECT run_id, data ->> '$.sweep.id' AS sweep_id, CAST(data ->> '$.sweep.cell' AS INTEGER) AS cell,
               data -> '$.sweep.values' AS varied
        FROM events WHERE kind = 'queued' AND (data ->> '$.sweep.id') IS NOT NULL
    )
    SELECT c.sweep_id, c.cell, c.run_id, c.varied, r.model, r.trait, r.seed, r.status, d.round,
           CAST(d.facts ->> '$.path[#-1].movement' AS DOUBLE) AS movement, p.care, p.social_norms,
           p.coherence, d.retention, p.relevance, p.perplexity_ratio, p.looping,
           CAST(d.facts ->> '$.facts_kept' AS DOUBLE) AS facts_kept,
           CAST(d.facts ->> '$.neutral_kl' AS DOUBLE) AS neutral_kl,
           d.facts ->> '$.headline.word' AS headline, d.kept, d.made, d.seconds, d.finished_at
    FROM cells c JOIN runs r USING (run_id)
    LEFT JOIN rounds d ON d.run_id = c.run_id
    LEFT JOIN profiles p ON p.run_id = d.run_id AND p.round = d.round AND p.stage = 'healed';
"""
"""Of each run that a sweep started a row a finished round, one without a round where none has finished."""

MIGRATIONS: tuple[str, ...] = (TABLES, TRAINING, WORTH, HEALTH, CONTROLS, DAMAGE, OWN_AXIS, SWEEPS, PRINTED)
"""Migration i takes a file from version i to i + 1."""

RECORD = """
CREATE TABLE IF NOT EXISTS steer_heal_schema (version INTEGER, applied_at DOUBLE, duckdb_version VARCHAR);
"""
