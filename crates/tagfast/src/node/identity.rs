//! The names of this machine and process, as epochs, logs and Kafka groups show them.

/// This machine and process: `HOST-PID`.
pub(super) fn node_name() -> String {
    format!("{}-{}", host_name(), std::process::id())
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "node".to_owned());
    name.trim().to_owned()
}
