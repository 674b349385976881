//! The statements. Numbers are BIGINT, also where they say yes or no; keys and bodies are bytes, which hold anything.

pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS lane(id BIGINT PRIMARY KEY, format BIGINT NOT NULL, epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL, time BIGINT NOT NULL, batch BIGINT NOT NULL, fence BIGINT NOT NULL,
        counter BIGINT NOT NULL, free BIGINT NOT NULL, owner TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS image(kind TEXT NOT NULL, key BYTEA NOT NULL, body BYTEA, PRIMARY KEY(kind, key));
    CREATE TABLE IF NOT EXISTS log(revision BIGINT PRIMARY KEY, epoch BIGINT NOT NULL, at BIGINT NOT NULL,
        body BYTEA NOT NULL);";

/// A record that changes stays on its page, and a log entry on its own rather than beside the table.
pub const TUNE: [&str; 2] =
    ["ALTER TABLE image SET (fillfactor=75)", "ALTER TABLE log SET (toast_tuple_target=8160)"];

pub const FIRST: &str =
    "INSERT INTO lane(id, format, epoch, revision, time, batch, fence, counter, free, owner)
    VALUES(1, $1, 0, 0, 0, 0, 0, 0, 0, '') ON CONFLICT(id) DO NOTHING";

pub const FORMAT: &str = "SELECT format FROM lane WHERE id=1";

pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub const HEAD: &str = "SELECT epoch, revision, time, batch, fence FROM lane WHERE id=1";

pub const IMAGES: &str = "SELECT kind, key, body FROM image";

pub const TAKE: &str = "UPDATE lane SET epoch=epoch+1, fence=fence+1, counter=0, free=0, owner=$2
    WHERE id=1 AND epoch=$1 RETURNING epoch, revision, time, batch, fence";

/// One statement, each of its parts on another table: without a head, nothing is written.
pub const APPEND: &str = "
    WITH head AS (
        UPDATE lane SET revision=$4, time=$5, batch=$6 WHERE id=1 AND epoch=$1 AND revision=$2 AND fence=$3
        RETURNING epoch),
    logged AS (
        INSERT INTO log(revision, epoch, at, body)
        SELECT u.revision, head.epoch, u.at, u.body
        FROM head, unnest($7::BIGINT[], $8::BIGINT[], $9::BYTEA[]) AS u(revision, at, body) RETURNING 1),
    put AS (
        INSERT INTO image(kind, key, body)
        SELECT u.kind, u.key, u.body
        FROM head, unnest($10::TEXT[], $11::BYTEA[], $12::BYTEA[]) AS u(kind, key, body)
        ON CONFLICT(kind, key) DO UPDATE SET body=excluded.body RETURNING 1)
    SELECT count(*) FROM head";

/// No attempt from before writes any more.
pub const FENCE: &str = "UPDATE lane SET fence=fence+1 WHERE id=1 AND epoch=$1 AND revision=$2 AND fence=$3";

pub const RENEW: &str = "UPDATE lane SET counter=$2 WHERE id=1 AND epoch=$1";

pub const RELEASE: &str = "UPDATE lane SET free=1 WHERE id=1 AND epoch=$1";

pub const SIGN: &str = "SELECT epoch, counter, revision, owner, free FROM lane WHERE id=1";

/// The head and the entries as of one moment, no more bytes than asked for but for the first.
pub const TAIL: &str = "
    SELECT lane.revision, entry.revision, entry.epoch, entry.body
    FROM lane LEFT JOIN (
        SELECT 1 AS lane, revision, epoch, body, sum(octet_length(body)) OVER (ORDER BY revision) AS bytes
        FROM (SELECT revision, epoch, body FROM log WHERE revision>$1 ORDER BY revision LIMIT $2) AS page
    ) AS entry ON entry.lane=lane.id AND (entry.bytes<=$3::BIGINT OR entry.revision=$1+1)
    WHERE lane.id=1 ORDER BY entry.revision";

pub const SWEEP: &str = "DELETE FROM image WHERE body IS NULL
    AND (kind, key) IN (SELECT u.kind, u.key FROM unnest($1::TEXT[], $2::BYTEA[]) AS u(kind, key))";

pub const TRIM: &str = "DELETE FROM log WHERE revision<(SELECT min(revision) FROM log)+$1::BIGINT AND at<$2";
