//! Readers of what trackers' files hold, as far as tests need them.

/// A field of a message: number, and the bytes of a text or message, or the eight or four of a number.
pub fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let n = match tag & 7 {
            0 => {
                let value = varint(&mut bytes);
                found.push((tag >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        found.push((tag >> 3, bytes[..n].to_vec()));
        bytes = &bytes[n..];
    }
    found
}

/// The eight bytes of a number.
pub fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// The records of an offline run of Weights & Biases: the field that each one has, and what is in it.
pub fn wandb_records(file: &[u8]) -> Vec<(u64, Vec<u8>)> {
    assert_eq!(&file[..7], b":W&B\xe1\xbe\0");
    let (mut at, mut record, mut records) = (7, Vec::new(), Vec::new());
    while at < file.len() {
        let left = 32_768 - at % 32_768;
        if left < 7 {
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([file[at + 4], file[at + 5]]));
        // A process that was killed in the middle of a record leaves a part of it.
        let Some(part) = file.get(at + 7..at + 7 + length) else { break };
        record.extend(part);
        if [1, 4].contains(&file[at + 6]) {
            let found = fields(&std::mem::take(&mut record));
            assert_eq!(number(&found[0].1), records.len() as u64 + 1, "they are counted");
            records.push(found[1].clone());
        }
        at += 7 + length;
    }
    records
}

/// Names and values of an item list: fields `name` and 16 of each field 1.
pub fn wandb_items(message: &[u8], name: u64) -> Vec<(String, serde_json::Value)> {
    let items = fields(message).into_iter().filter(|(field, _)| *field == 1);
    let pair = |(_, item): (u64, Vec<u8>)| {
        let of = |wanted: u64| {
            let found = fields(&item).into_iter().find(|(field, _)| *field == wanted).unwrap().1;
            String::from_utf8(found).unwrap()
        };
        (of(name), serde_json::from_str(&of(16)).unwrap())
    };
    items.map(pair).collect()
}
