//! The whole HTTP API over a store that acknowledges every write and keeps nothing: the throughput
//! of the HTTP layer alone.
//!
//! `cargo run --release --example noop_store_server -- --listen 127.0.0.1:0 --tags 5`

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use clap::Parser;
use tagfast_api::{
    AllowedHosts, ApiLimits, ApiServices, AuthConfig, ByteBudget, Operations, OperationsError,
    Readiness, StatusReport, router, serve,
};
use tagfast_domain::{
    ContentKey, Epoch, EpochId, EpochOrdinal, Limits, Operation, TagName, Tagging, UserId, Version,
};
use tagfast_popular::RecountReport;
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{
    CacheUse, History, Position, ReadOptions, Receipt, ReceiptReader, ScanPage, ScanRequest,
    Sealer, ShardScanner, Source, StoreError, TagReader, TagWriter, Verdict, View, WriteAnswer,
    WriteRequest,
};

/// The options of the command line.
#[derive(Parser)]
struct Args {
    /// Address and port.
    #[arg(long, default_value = "127.0.0.1:7272")]
    listen: String,
    /// Tags that every content shows.
    #[arg(long, default_value_t = 4)]
    tags: u32,
}

struct NoopStore {
    epoch: Epoch,
    writes: AtomicU64,
    tags: Vec<Tagging>,
}

impl NoopStore {
    fn position(&self) -> Position {
        let writes = self.writes.load(Ordering::Relaxed);
        Position { epoch: self.epoch.id, xid: writes, lsn: writes }
    }

    fn answer(&self, request: &WriteRequest) -> WriteAnswer {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let names =
            |tags: &[tagfast_domain::Tag]| tags.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let (added, removed) = match &request.write.operation {
            Operation::Patch { add, remove } => (names(add), remove.clone()),
            Operation::Replace { tags } => (names(tags), Vec::new()),
        };
        let position = self.position();
        WriteAnswer {
            version: self.epoch.first_version(),
            changed: true,
            added,
            removed,
            repeated: false,
            receipt: Receipt {
                cluster: 0,
                shard: LogicalShard::of(&request.write.key),
                inside_lsn: position.lsn,
                position,
                write_id: request.write.id,
            },
            view: None,
            replicated: None,
            degraded: Vec::new(),
        }
    }
}

#[async_trait]
impl TagReader for NoopStore {
    async fn view(
        &self,
        _key: &ContentKey,
        _options: &ReadOptions<'_>,
    ) -> Result<View, StoreError> {
        Ok(View {
            version: self.epoch.first_version(),
            tags: self.tags.clone(),
            position: self.position(),
            source: Source::Primary,
            as_of: SystemClock.now_ms(),
            degraded: Vec::new(),
            xmin: 0,
            stale: false,
            cache: CacheUse::Bypass,
        })
    }
}

#[async_trait]
impl TagWriter for NoopStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        Ok(self.answer(&request))
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        requests.iter().map(|r| Ok(self.answer(r))).collect()
    }
}

#[async_trait]
impl ShardScanner for NoopStore {
    async fn scan(&self, _: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        Ok(ScanPage::default())
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.epoch)
    }
}

#[async_trait]
impl ReceiptReader for NoopStore {
    async fn verdict(&self, _receipt: &Receipt) -> Result<Verdict, StoreError> {
        Ok(Verdict::Unknown("expired"))
    }
}

impl History for NoopStore {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(self.epoch.id)
    }

    fn epoch_end(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
        (epoch == self.epoch.id).then_some(u64::MAX)
    }
}

struct NoOperations;

#[async_trait]
impl Operations for NoOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        vec![Readiness { part: "store", problem: None }]
    }

    async fn status(&self) -> StatusReport {
        StatusReport { mode: "nothing".to_owned(), ..StatusReport::default() }
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        Err(OperationsError::Failed("there is nothing to index".into()))
    }

    async fn recount(&self, _repair: bool) -> Result<RecountReport, OperationsError> {
        Err(OperationsError::Failed("there is nothing to count".into()))
    }

    fn allow_storm(&self, _group: &str) -> Result<(), OperationsError> {
        Err(OperationsError::Failed("there are no consumers".into()))
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let epoch =
        Epoch { id: EpochId([1; 16]), ordinal: EpochOrdinal(SystemClock.now_ms().unsigned_abs()) };
    let version = epoch.first_version();
    let tags = (0..args.tags).map(|n| tagging(n, version)).collect::<Result<_, _>>()?;
    let parts = ApiServices {
        store: Arc::new(NoopStore { epoch, writes: AtomicU64::new(0), tags }),
        search: None,
        popular: None,
        dead_letters: None,
        serves_product: true,
        failovers: None,
        clusters: None,
        breakers: Breakers::new(Arc::new(SystemClock)),
        operations: Arc::new(NoOperations),
        sealer: Sealer::new(&[[7; 32]]),
        clock: Arc::new(SystemClock),
        auth: AuthConfig::None,
        domain_limits: Limits::default(),
        limits: ApiLimits::default(),
        allowed_hosts: AllowedHosts::new([], true)?,
        machine_limits: Vec::new(),
        byte_budget: ByteBudget::new(ApiLimits::default().in_flight_bytes),
        tasks: ApiServices::task_group(),
    };
    let listener = tokio::net::TcpListener::bind(&args.listen).await?;
    writeln!(std::io::stderr(), "listening on http://{}", listener.local_addr()?)?;
    let (tasks, budget) = (parts.tasks.clone(), parts.byte_budget.clone());
    let limits = ApiLimits::default();
    serve(listener, router(parts), limits, &tasks, &budget, std::future::pending()).await?;
    Ok(())
}

fn tagging(n: u32, version: Version) -> Result<Tagging, tagfast_domain::DomainError> {
    let name = TagName::parse(&format!("noop::tag-{n}"))?;
    Ok(Tagging {
        display: name.shared(),
        name,
        user: UserId::parse("anonymous")?,
        at: SystemClock.now_ms(),
        decided_at: version,
        present: true,
    })
}
