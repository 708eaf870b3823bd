//! The administration of Kafka that faults need, in its wire protocol: topics, partitions, records.
//!
//! The versions of the requests are those before compact encodings, which Kafka 4 still takes.
//! <https://kafka.apache.org/protocol> has their fields.
//!
//! How it fails: an answer with an error code is an error that names the request and the code.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Timeout of a request, in milliseconds.
const TIMEOUT_MS: i32 = 20_000;
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Error code: the topic or partition does not exist.
pub(super) const UNKNOWN_TOPIC: i16 = 3;
/// Error code: the topic exists.
pub(super) const TOPIC_EXISTS: i16 = 36;

/// Fields of a request.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn int16(mut self, value: i16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn int32(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn int64(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn flag(mut self, value: bool) -> Self {
        self.0.push(u8::from(value));
        self
    }

    fn text(self, value: &str) -> Self {
        let mut fields = self.int16(value.len() as i16);
        fields.0.extend(value.as_bytes());
        fields
    }
}

/// Fields of an answer.
struct Answer {
    bytes: Vec<u8>,
    at: usize,
}

impl Answer {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..self.at + N).context("Kafka's answer is too short")?;
        self.at += N;
        Ok(bytes.try_into()?)
    }

    fn int16(&mut self) -> Result<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> Result<i32> {
        self.take().map(i32::from_be_bytes)
    }

    /// A text; `None` for null.
    fn text(&mut self) -> Result<Option<String>> {
        let Ok(length) = usize::try_from(self.int16()?) else { return Ok(None) };
        let bytes = self.bytes.get(self.at..self.at + length).context("a text is cut off")?;
        self.at += length;
        Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

/// A connection to a broker.
pub(super) struct KafkaAdmin(TcpStream);

impl KafkaAdmin {
    pub(super) fn connect(broker: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(broker).context("Kafka does not listen")?;
        let timeout = Some(Duration::from_millis(TIMEOUT_MS as u64 * 2));
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        Ok(Self(stream))
    }

    fn call(&mut self, api_key: i16, version: i16, body: Fields) -> Result<Answer> {
        const CORRELATION: i32 = 7;
        let header = Fields::default().int16(api_key).int16(version);
        let request = header.int32(CORRELATION).text("stack").0;
        let size = (request.len() + body.0.len()) as i32;
        self.0.write_all(&[&size.to_be_bytes()[..], &request, &body.0].concat())?;
        let mut size = [0; 4];
        self.0.read_exact(&mut size).context("Kafka does not answer")?;
        let size = usize::try_from(i32::from_be_bytes(size))?;
        ensure!(size <= ANSWER_BYTES_MAX, "Kafka's answer has {size} bytes");
        let mut answer = Answer { bytes: vec![0; size], at: 0 };
        self.0.read_exact(&mut answer.bytes)?;
        ensure!(answer.int32()? == CORRELATION, "Kafka answered a different request");
        Ok(answer)
    }

    /// The numbers of a topic's partitions; `None` when there is no such topic.
    pub(super) fn partitions(&mut self, topic: &str) -> Result<Option<Vec<i32>>> {
        let mut answer = self.call(3, 1, Fields::default().int32(1).text(topic))?;
        for _ in 0..answer.int32()? {
            answer.int32()?;
            answer.text()?;
            answer.int32()?;
            answer.text()?;
        }
        answer.int32()?;
        ensure!(answer.int32()? == 1, "Kafka does not answer about {topic}");
        match answer.int16()? {
            0 => {}
            UNKNOWN_TOPIC => return Ok(None),
            code => bail!("Kafka answered error {code} about topic {topic}"),
        }
        answer.text()?;
        answer.skip(1);
        let mut numbers = Vec::new();
        for _ in 0..answer.int32()? {
            answer.int16()?;
            numbers.push(answer.int32()?);
            answer.int32()?;
            for _ in 0..2 {
                let replicas = usize::try_from(answer.int32()?)?;
                answer.skip(4 * replicas);
            }
        }
        Ok(Some(numbers))
    }

    /// Creates a topic; the error code.
    pub(super) fn create_topic(&mut self, topic: &str, partitions: i32) -> Result<i16> {
        let fields = Fields::default().int32(1).text(topic).int32(partitions).int16(1);
        let fields = fields.int32(0).int32(0).int32(TIMEOUT_MS).flag(false);
        let mut answer = self.call(19, 2, fields)?;
        answer.skip(8);
        answer.text()?;
        answer.int16()
    }

    /// Deletes a topic; the error code.
    pub(super) fn delete_topic(&mut self, topic: &str) -> Result<i16> {
        let fields = Fields::default().int32(1).text(topic).int32(TIMEOUT_MS);
        let mut answer = self.call(20, 1, fields)?;
        answer.skip(8);
        answer.text()?;
        answer.int16()
    }

    /// Gives a topic this number of partitions.
    pub(super) fn raise_partitions(&mut self, topic: &str, partitions: i32) -> Result<()> {
        let fields = Fields::default().int32(1).text(topic).int32(partitions);
        let fields = fields.int32(-1).int32(TIMEOUT_MS).flag(false);
        let mut answer = self.call(37, 0, fields)?;
        answer.skip(8);
        answer.text()?;
        let code = answer.int16()?;
        ensure!(code == 0, "Kafka answered error {code} to more partitions of {topic}");
        Ok(())
    }

    /// Deletes every record of these partitions.
    pub(super) fn delete_records(&mut self, topic: &str, partitions: &[i32]) -> Result<()> {
        /// Stands for the end of a partition.
        const HIGH_WATERMARK: i64 = -1;
        let fields = Fields::default().int32(1).text(topic).int32(partitions.len() as i32);
        let fields = partitions
            .iter()
            .fold(fields, |fields, number| fields.int32(*number).int64(HIGH_WATERMARK));
        let mut answer = self.call(21, 0, fields.int32(TIMEOUT_MS))?;
        answer.skip(8);
        answer.text()?;
        for _ in 0..answer.int32()? {
            answer.skip(12);
            let code = answer.int16()?;
            ensure!(code == 0, "Kafka answered error {code} to the deletion of records of {topic}");
        }
        Ok(())
    }
}
