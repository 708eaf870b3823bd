//! The steps of a schedule. A step that is not possible where it comes does nothing, so that every
//! part of a schedule is one.

/// A database node: P leads at first, R1 and R2 follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Db {
    P,
    R1,
    R2,
}

impl Db {
    pub(super) const ALL: [Self; 3] = [Self::P, Self::R1, Self::R2];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P => "p",
            Self::R1 => "r1",
            Self::R2 => "r2",
        }
    }
}

/// A process of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    A,
    B,
}

impl Api {
    pub(super) const ALL: [Self; 2] = [Self::A, Self::B];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// A write, by its number.
pub(super) type Client = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A client sends a write, or sends it again when it was told that its outcome is unknown.
    Send(Client, Api),
    /// Its transaction commits.
    Commit(Client),
    /// The result of the transaction arrives, and is journaled.
    Return(Client),
    /// The process decides whether to acknowledge it.
    Answer(Client),
    /// The client does not wait any longer.
    GiveUp(Client),
    /// A replica receives one record from the node that it follows.
    Ship(Db),
    /// A replica follows the node that holds the key; it rewinds what that node does not have.
    Follow(Db),
    /// A process asks the primary for the positions of the replicas.
    Poll(Api),
    Crash(Db),
    /// The lease of the leader ends; its PostgreSQL goes on.
    LoseKey,
    Promote(Db),
    /// The node that lost the key takes it again, without a promotion.
    RetakeKey(Db),
    /// A node that crashed, or lost the key, comes back as a replica.
    Rejoin(Db),
    /// A process reads etcd and the leader.
    Observe(Api),
    /// It does what follows from its last observation: mints, adopts, connects, proves.
    Act(Api),
    /// It repairs the entry with this place among those that wait.
    Repair(Api, usize),
    /// It closes the repair of its epoch, if that is possible.
    Close(Api),
    CrashApi(Api),
    /// It is stopped for so long that its registration ends; then it goes on.
    LoseRegistration(Api),
}
