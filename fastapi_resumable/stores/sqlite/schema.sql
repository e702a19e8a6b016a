-- Workers that use the file. Each also holds a lock, on a file of its name beside the database, for as long as it lives.
CREATE TABLE workers (
    worker TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    started_at REAL NOT NULL
) WITHOUT ROWID;

-- The epochs of streams: queued, current, or gone (`cancelled` or `replaced`) a short while ago.
CREATE TABLE streams (
    stream INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL UNIQUE,
    owner TEXT,
    id TEXT NOT NULL,
    worker TEXT NOT NULL,
    idempotency_key TEXT,
    status TEXT NOT NULL,
    code TEXT NOT NULL DEFAULT '',
    gone TEXT NOT NULL DEFAULT '',
    requested_at REAL NOT NULL,
    started_at REAL NOT NULL DEFAULT 0,
    completed_at REAL NOT NULL DEFAULT 0,
    expires_at REAL, -- null while it is queued or live
    status_code INTEGER,
    headers TEXT, -- null until it has begun
    traceparent TEXT,
    earliest INTEGER NOT NULL DEFAULT 0,
    mid_event INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX streams_by_key ON streams (owner, id, stream);
CREATE INDEX streams_by_expiry ON streams (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX live_streams ON streams (owner, worker) WHERE expires_at IS NULL;

-- The logs. `end` is the offset after `data`. With rowids, so that no search has to load the data of what it passes by.
CREATE TABLE chunks (
    stream INTEGER NOT NULL,
    end INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (stream, end)
);

-- How far the slowest reader on a worker is, in a stream that another worker produces.
CREATE TABLE readers (
    stream INTEGER NOT NULL,
    worker TEXT NOT NULL,
    offset INTEGER NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (stream, worker)
) WITHOUT ROWID;

-- What happened to streams in the last minute, for the other workers.
CREATE TABLE changes (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    owner TEXT,
    epoch TEXT NOT NULL,
    worker TEXT NOT NULL,
    status TEXT NOT NULL,
    code TEXT NOT NULL,
    item TEXT NOT NULL
);
