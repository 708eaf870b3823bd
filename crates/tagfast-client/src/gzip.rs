//! Reads gzip: members one after another, also with zero padding behind the last one.
//!
//! Damage ends the text with an error; everything that was decoded before it is handed out first.
//! That is why this is no `flate2::bufread::MultiGzDecoder`: it drops what one call decoded before
//! the damage, up to a whole buffer, and takes padding for a damaged member. The checksum of a
//! member stands behind it, so damage that decodes to some text is found at the end of the member
//! only.

use std::io::{BufRead, Error, ErrorKind, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Compressed bytes per call of the decoder.
const INPUT_STEP_BYTES: usize = 512;
/// Room for what one call can decode: deflate makes at most 1,032 bytes of one. The decoder never
/// stops for lack of room, so an error cannot hide bytes that it has decoded and not handed out.
const OUTPUT_BYTES: usize = 1032 * INPUT_STEP_BYTES + 64 * 1024;

/// Why the text ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GzipDamage {
    /// The data ends inside a member.
    #[error("the gzip data ends in the middle")]
    CutOff,
    /// The header of a member cannot be right.
    #[error("the header of the gzip data is damaged")]
    Header,
    /// The compressed data cannot be decoded.
    #[error("the gzip data is damaged")]
    Data,
    /// The text of a member is not the one that was compressed.
    #[error("the gzip data is damaged: its checksum is wrong")]
    Checksum,
    /// Bytes that are neither a member nor zero follow the last member.
    #[error("bytes that are no gzip data follow the gzip data")]
    Trailing,
}

impl From<GzipDamage> for Error {
    fn from(damage: GzipDamage) -> Self {
        let kind = match damage {
            GzipDamage::CutOff => ErrorKind::UnexpectedEof,
            GzipDamage::Header | GzipDamage::Data | GzipDamage::Checksum | GzipDamage::Trailing => {
                ErrorKind::InvalidData
            }
        };
        Self::new(kind, damage)
    }
}

/// What comes next in the compressed data.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// The header of the first member.
    First,
    /// Zero padding, a member, or the end.
    Member,
    /// Compressed data of a member.
    Data,
    /// The checksum and the length behind a member.
    Trailer,
    /// Nothing.
    End,
    /// Nothing that can be read.
    Damaged(GzipDamage),
}

/// The plain text of gzip data.
pub(crate) struct GzipReader<R> {
    source: R,
    decoder: Decompress,
    /// Checksum and length of the member's text so far.
    checksum: Crc,
    next: Next,
    output: Box<[u8]>,
    /// What was decoded and not handed out: this part of `output`.
    ready: std::ops::Range<usize>,
}

impl<R: BufRead> GzipReader<R> {
    /// Reads the data of `source`, whose errors must not be temporary.
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            decoder: Decompress::new(false),
            checksum: Crc::new(),
            next: Next::First,
            output: vec![0; OUTPUT_BYTES].into_boxed_slice(),
            ready: 0..0,
        }
    }

    /// Takes one step. `ready` is not empty afterwards if the step has decoded something, also when
    /// it has met damage.
    fn step(&mut self) -> std::io::Result<()> {
        self.next = match self.next {
            Next::First => self.member()?,
            Next::Member => {
                let length = self.source.fill_buf()?.len();
                if length == 0 {
                    Next::End
                } else {
                    let zeros = self.source.fill_buf()?.iter().take_while(|b| **b == 0).count();
                    self.source.consume(zeros);
                    if zeros == length { Next::Member } else { self.member()? }
                }
            }
            Next::Data => self.decode()?,
            Next::Trailer => self.trailer()?,
            Next::End => Next::End,
            Next::Damaged(damage) => return Err(damage.into()),
        };
        Ok(())
    }

    /// Reads the header of a member (RFC 1952, 2.3).
    fn member(&mut self) -> std::io::Result<Next> {
        const HEADER_CHECKSUM: u8 = 2;
        const EXTRA: u8 = 4;
        const NAME: u8 = 8;
        const COMMENT: u8 = 16;
        const RESERVED: u8 = 0xe0;

        let first = matches!(self.next, Next::First);
        let mut header = Crc::new();
        // Byte by byte, so that a single foreign one is not taken for the beginning of a header.
        for expected in [0x1f, 0x8b, 8] {
            match self.exactly::<1>(&mut header)? {
                Some([given]) if given == expected => {}
                Some(_) if first => return Ok(Next::Damaged(GzipDamage::Header)),
                Some(_) => return Ok(Next::Damaged(GzipDamage::Trailing)),
                None => return Ok(Next::Damaged(GzipDamage::CutOff)),
            }
        }
        let Some([flags, ..]) = self.exactly::<7>(&mut header)? else {
            return Ok(Next::Damaged(GzipDamage::CutOff));
        };
        if flags & RESERVED != 0 {
            return Ok(Next::Damaged(GzipDamage::Header));
        }
        let mut whole = true;
        if flags & EXTRA != 0 {
            match self.exactly::<2>(&mut header)? {
                Some(length) => {
                    for _ in 0..u16::from_le_bytes(length) {
                        whole &= self.exactly::<1>(&mut header)?.is_some();
                    }
                }
                None => whole = false,
            }
        }
        for text in [NAME, COMMENT] {
            while whole && flags & text != 0 {
                match self.exactly::<1>(&mut header)? {
                    Some([0]) => break,
                    Some(_) => {}
                    None => whole = false,
                }
            }
        }
        if whole && flags & HEADER_CHECKSUM != 0 {
            let expected = (header.sum() & 0xffff) as u16;
            match self.exactly::<2>(&mut header)? {
                Some(given) if u16::from_le_bytes(given) == expected => {}
                Some(_) => return Ok(Next::Damaged(GzipDamage::Header)),
                None => whole = false,
            }
        }
        if !whole {
            return Ok(Next::Damaged(GzipDamage::CutOff));
        }
        self.decoder.reset(false);
        self.checksum = Crc::new();
        Ok(Next::Data)
    }

    fn decode(&mut self) -> std::io::Result<Next> {
        let input = self.source.fill_buf()?;
        if input.is_empty() {
            return Ok(Next::Damaged(GzipDamage::CutOff));
        }
        let input = &input[..input.len().min(INPUT_STEP_BYTES)];
        let (read, written) = (self.decoder.total_in(), self.decoder.total_out());
        let result = self.decoder.decompress(input, &mut self.output, FlushDecompress::None);
        let consumed = (self.decoder.total_in() - read) as usize;
        let decoded = (self.decoder.total_out() - written) as usize;
        self.source.consume(consumed);
        self.checksum.update(&self.output[..decoded]);
        self.ready = 0..decoded;
        match result {
            Ok(Status::StreamEnd) => Ok(Next::Trailer),
            Ok(Status::Ok | Status::BufError) if consumed + decoded > 0 => Ok(Next::Data),
            Ok(Status::Ok | Status::BufError) | Err(_) => Ok(Next::Damaged(GzipDamage::Data)),
        }
    }

    fn trailer(&mut self) -> std::io::Result<Next> {
        let Some(trailer) = self.exactly::<8>(&mut Crc::new())? else {
            return Ok(Next::Damaged(GzipDamage::CutOff));
        };
        let [a, b, c, d, e, f, g, h] = trailer;
        let right = u32::from_le_bytes([a, b, c, d]) == self.checksum.sum()
            && u32::from_le_bytes([e, f, g, h]) == self.checksum.amount();
        Ok(if right { Next::Member } else { Next::Damaged(GzipDamage::Checksum) })
    }

    /// The next `N` bytes; `None` = the data ends before.
    fn exactly<const N: usize>(&mut self, checksum: &mut Crc) -> std::io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.source.read_exact(&mut bytes) {
            Ok(()) => {
                checksum.update(&bytes);
                Ok(Some(bytes))
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl<R: BufRead> BufRead for GzipReader<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.ready.is_empty() && !matches!(self.next, Next::End) {
            self.step()?;
        }
        Ok(&self.output[self.ready.clone()])
    }

    fn consume(&mut self, amount: usize) {
        self.ready.start = (self.ready.start + amount).min(self.ready.end);
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let ready = self.fill_buf()?;
        let length = ready.len().min(into.len());
        into[..length].copy_from_slice(&ready[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};

    use flate2::{Compression, GzBuilder};

    use super::*;

    /// Bytes before the compressed data when the header names nothing.
    const HEADER_BYTES: usize = 10;
    /// Bytes behind the compressed data.
    const TRAILER_BYTES: usize = 8;

    fn member(text: &[u8], level: u32) -> Vec<u8> {
        let mut out = GzBuilder::new().write(Vec::new(), Compression::new(level));
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    /// Text that compresses, and not too well.
    fn sample(bytes: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut text = Vec::new();
        while text.len() < bytes {
            writeln!(text, "{{\"id\":\"{}\",\"n\":{}}}", random.u16(..), random.u8(..)).unwrap();
        }
        text
    }

    /// All text before the end, and the damage that ends it. The source hands out `piece` bytes at
    /// a time.
    fn read(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<GzipDamage>) {
        let mut reader = GzipReader::new(BufReader::with_capacity(piece, bytes));
        let mut text = Vec::new();
        loop {
            match reader.fill_buf() {
                Ok([]) => return (text, None),
                Ok(ready) => {
                    text.extend_from_slice(ready);
                    let length = ready.len();
                    reader.consume(length);
                }
                Err(error) => {
                    let again = reader.fill_buf().map(<[u8]>::len).unwrap_err();
                    assert_eq!(again.to_string(), error.to_string(), "an error stays");
                    let damage = error.into_inner().and_then(|e| e.downcast().ok());
                    return (text, Some(*damage.expect("only damage is an error here")));
                }
            }
        }
    }

    #[test]
    fn members_and_zero_padding_are_read_and_nothing_else() {
        let (one, two) = (sample(100_000, 1), sample(700, 2));
        let named = {
            let builder = GzBuilder::new().filename("a.ndjson").comment("c").extra(vec![7; 300]);
            let mut out = builder.write(Vec::new(), Compression::fast());
            out.write_all(&two).unwrap();
            out.finish().unwrap()
        };
        let empty = member(b"", 6);
        for piece in [1, 511, 512, 1 << 18] {
            for padding in [0, 1, 9, 511, 512, 513, 1 << 17] {
                let zeros = vec![0; padding];
                let bytes = [&member(&one, 6)[..], &empty, &named, &zeros].concat();
                let text = [&one[..], &two].concat();
                assert_eq!(read(&bytes, piece), (text.clone(), None), "{padding} zeros");
                let again = [&bytes[..], &named].concat();
                assert_eq!(read(&again, piece), ([&text[..], &two].concat(), None));
                for garbage in [&b"x"[..], b"\x1f", b"\x1f\x8b\x07 and more", &one[..2000]] {
                    let (found, damage) = read(&[&bytes[..], garbage].concat(), piece);
                    assert!(found == text, "what precedes garbage is handed out");
                    let cut = garbage == b"\x1f";
                    let expected = if cut { GzipDamage::CutOff } else { GzipDamage::Trailing };
                    assert_eq!(damage, Some(expected));
                }
            }
        }
    }

    /// What a decoder that is given one byte at a time makes of compressed data before it fails.
    fn decodable(data: &[u8]) -> Vec<u8> {
        let mut decoder = Decompress::new(false);
        let (mut text, mut output) = (Vec::new(), vec![0; 1 << 16]);
        for byte in data.chunks(1) {
            let before = decoder.total_out();
            let result = decoder.decompress(byte, &mut output, FlushDecompress::None);
            text.extend_from_slice(&output[..(decoder.total_out() - before) as usize]);
            if !matches!(result, Ok(Status::Ok | Status::BufError)) {
                break;
            }
        }
        text
    }

    #[test]
    fn everything_that_can_be_decoded_precedes_the_damage() {
        let text = sample(150_000, 3);
        let mut random = fastrand::Rng::with_seed(4);
        for level in [0, 1, 6] {
            let whole = member(&text, level);
            let data = HEADER_BYTES..whole.len() - TRAILER_BYTES;
            for round in 0..25 {
                let place = random.usize(data.clone());
                let mut damaged = whole.clone();
                if round % 3 == 0 {
                    damaged.truncate(place);
                } else {
                    damaged[place] ^= 1 << random.u8(..8);
                }
                let expected = decodable(&damaged[HEADER_BYTES..damaged.len().min(data.end)]);
                let (found, damage) = read(&damaged, 1 << 18);
                assert!(
                    found == expected,
                    "level {level}, byte {place}: {} of {} bytes",
                    found.len(),
                    expected.len()
                );
                assert!(damage.is_some(), "level {level}, byte {place}");
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let text = sample(5000, 5);
        let whole = member(&text, 6);
        let changed = |place: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[place] = value;
            read(&bytes, 512)
        };
        assert_eq!(changed(2, 7), (Vec::new(), Some(GzipDamage::Header)));
        assert_eq!(changed(3, 0x80), (Vec::new(), Some(GzipDamage::Header)));
        for place in 1..=TRAILER_BYTES {
            let place = whole.len() - place;
            let (found, damage) = changed(place, !whole[place]);
            assert_eq!((found == text, damage), (true, Some(GzipDamage::Checksum)));
            let (found, damage) = read(&whole[..place], 512);
            assert_eq!((found == text, damage), (true, Some(GzipDamage::CutOff)));
        }
    }
}
