//! The migrations of the two engines make the same schema: the same names in the same order, nullable alike, with the
//! same keys, defaults and indexes. Compared on databases that were really migrated.

use crate::Fresh;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use waxwing_storage::Store;

#[derive(Debug, PartialEq, Eq)]
struct Column {
    name: String,
    kind: String,
    nullable: bool,
    default: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Index {
    unique: bool,
    partial: bool,
    columns: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    columns: Vec<Column>,
    key: Vec<String>,
    indexes: BTreeMap<String, Index>,
}

#[derive(Debug, PartialEq, Eq)]
struct Schema {
    applied: Vec<(i64, String)>,
    tables: BTreeMap<String, Table>,
    /// Full-text indexes: modules of SQLite, tables with an index of that kind on PostgreSQL. Only their names compare.
    virtual_tables: BTreeSet<String>,
}

const APPLIED: &str = "SELECT version, name FROM schema_migrations ORDER BY version";

/// A default as both engines write it: `'x'::text` and `'x'`, `false` and `FALSE`.
fn plain(default: &str) -> String {
    default.split("::").next().unwrap_or_default().trim_matches(['(', ')']).to_lowercase()
}

async fn of_sqlite(url: &str) -> Schema {
    let mut conn = SqliteConnection::connect(url).await.unwrap();
    let applied = sqlx::query_as(APPLIED).fetch_all(&mut conn).await.unwrap();
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let virtual_tables: BTreeSet<String> = found
        .iter()
        .filter(|(_, sql)| sql.to_uppercase().starts_with("CREATE VIRTUAL"))
        .map(|(name, _)| name.clone())
        .collect();
    let mut tables = BTreeMap::new();
    for (table, _) in found {
        if virtual_tables.iter().any(|name| table == *name || table.starts_with(&format!("{name}_"))) {
            continue;
        }
        tables.insert(table.clone(), sqlite_table(&mut conn, &table).await);
    }
    Schema { applied, tables, virtual_tables }
}

async fn sqlite_table(conn: &mut SqliteConnection, name: &str) -> Table {
    let mut table = Table::default();
    let columns: Vec<(String, String, bool, Option<String>, i64)> = sqlx::query_as(
        "SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info($1) ORDER BY cid",
    )
    .bind(name)
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let mut key: Vec<(i64, String)> = Vec::new();
    for (name, kind, not_null, default, place) in columns {
        if place > 0 {
            key.push((place, name.clone()));
        }
        let default = default.as_deref().map(plain);
        // SQLite makes a key the row's own number only where the type is called so.
        let kind = if place == 1 && kind == "INTEGER" { "BIGINT".to_owned() } else { kind.to_uppercase() };
        table.columns.push(Column { name, kind, nullable: !not_null, default });
    }
    key.sort();
    table.key = key.into_iter().map(|(_, name)| name).collect();
    let indexes: Vec<(String, bool, bool)> =
        sqlx::query_as("SELECT name, \"unique\", partial FROM pragma_index_list($1) WHERE origin = 'c'")
            .bind(name)
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    for (index, unique, partial) in indexes {
        let columns: Vec<(Option<String>,)> =
            sqlx::query_as("SELECT name FROM pragma_index_info($1) ORDER BY seqno")
                .bind(&index)
                .fetch_all(&mut *conn)
                .await
                .unwrap();
        let columns =
            columns.into_iter().map(|(name,)| name.unwrap_or_else(|| "expression".into())).collect();
        table.indexes.insert(index, Index { unique, partial, columns });
    }
    table
}

/// The name that SQLite's files give the type.
fn kind(postgres: &str) -> String {
    let kind = match postgres {
        "bytea" => "BLOB",
        "double precision" => "DOUBLE PRECISION",
        other => return other.to_uppercase(),
    };
    kind.to_owned()
}

async fn of_postgres(url: &str) -> Schema {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let applied = sqlx::query_as(APPLIED).fetch_all(&mut conn).await.unwrap();
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut virtual_tables = BTreeSet::new();
    let columns: Vec<(String, String, String, String, Option<String>)> = sqlx::query_as(
        "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text, column_default::text \
         FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    for (table, name, data_type, nullable, default) in columns {
        if data_type == "tsvector" {
            virtual_tables.insert(table.clone());
        }
        let default = default.as_deref().map(plain);
        let column = Column { name, kind: kind(&data_type), nullable: nullable == "YES", default };
        tables.entry(table).or_default().columns.push(column);
    }
    let indexes: Vec<(String, String, bool, bool, bool, String, String)> = sqlx::query_as(
        "SELECT t.relname::text, i.relname::text, x.indisprimary, x.indisunique, x.indpred IS NOT NULL, m.amname::text, \
         (SELECT string_agg(pg_get_indexdef(x.indexrelid, k, true), ',' ORDER BY k) \
          FROM generate_series(1, x.indnkeyatts::int) k) \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid \
         JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = i.relam WHERE n.nspname = 'public'",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    for (table, name, primary, unique, partial, method, columns) in indexes {
        let columns: Vec<String> = columns.split(',').map(|name| name.replace('"', "")).collect();
        let table = tables.get_mut(&table).unwrap();
        if primary {
            table.key = columns;
        } else if method == "btree" {
            table.indexes.insert(name, Index { unique, partial, columns });
        }
    }
    tables.retain(|name, _| !virtual_tables.contains(name));
    Schema { applied, tables, virtual_tables }
}

/// The names of the files of one engine, without their ending.
fn files(engine: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(engine);
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().strip_suffix(".sql").unwrap().to_owned()).collect()
}

/// Messages to devices are in the order of the log on SQLite, and filed under their devices late, through an index of those
/// that are; PostgreSQL finds them by their key. Checks both and makes them alike.
fn letters_alike(sqlite: &mut Schema, postgres: &mut Schema) {
    let (in_order, by_device) =
        (sqlite.tables.get_mut("to_device").unwrap(), postgres.tables.get_mut("to_device").unwrap());
    assert_eq!(std::mem::take(&mut in_order.key), ["position"]);
    let index = in_order.indexes.remove("to_device_by_device").unwrap();
    assert!(index.partial && !index.unique);
    assert_eq!(index.columns, std::mem::take(&mut by_device.key));
}

#[tokio::test]
async fn both_engines_have_the_same_schema() {
    assert_eq!(files("sqlite"), files("postgres"));
    let fresh = Fresh::sqlite();
    drop(Store::open(&fresh.url).await.unwrap());
    let mut sqlite = of_sqlite(&fresh.url).await;
    let applied: BTreeSet<String> = sqlite.applied.iter().map(|(_, name)| name.clone()).collect();
    assert_eq!(applied, files("sqlite"), "every file is applied");
    for (number, name) in &sqlite.applied {
        assert_eq!(name.split('_').next().unwrap().parse::<i64>().unwrap(), *number, "{name}");
    }
    let Some(fresh) = Fresh::postgres().await else { return };
    drop(Store::open(&fresh.url).await.unwrap());
    let mut postgres = of_postgres(&fresh.url).await;
    fresh.drop_database().await;
    letters_alike(&mut sqlite, &mut postgres);
    assert_eq!(sqlite.applied, postgres.applied);
    assert_eq!(sqlite.virtual_tables, postgres.virtual_tables);
    let names = |schema: &Schema| schema.tables.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&sqlite), names(&postgres));
    let differing: Vec<String> = sqlite
        .tables
        .iter()
        .filter(|(name, table)| postgres.tables.get(*name) != Some(*table))
        .map(|(name, table)| {
            format!("{name}:\n  sqlite   {table:?}\n  postgres {:?}", postgres.tables.get(name))
        })
        .collect();
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

/// A column more, a name or a nullability that differs: the comparison must see it, or it shows nothing.
#[tokio::test]
async fn a_difference_is_seen() {
    let fresh = Fresh::sqlite();
    drop(Store::open(&fresh.url).await.unwrap());
    let before = of_sqlite(&fresh.url).await;
    for change in [
        "ALTER TABLE reports ADD COLUMN more TEXT",
        "ALTER TABLE reports RENAME COLUMN more TO other",
        "CREATE INDEX reports_by_room ON reports (room_id)",
        "DROP TABLE reports",
    ] {
        let was = of_sqlite(&fresh.url).await;
        let mut conn = SqliteConnection::connect(&fresh.url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(change.to_owned())).execute(&mut conn).await.unwrap();
        drop(conn);
        assert_ne!(was, of_sqlite(&fresh.url).await, "{change}");
    }
    assert_ne!(before, of_sqlite(&fresh.url).await);
}
