//! The archive of an architecture: images of all sources, packed together, since they have much in
//! common. kernels/cuda/src/images.rs reads it.

/// First bytes of an archive.
const MAGIC: &[u8; 8] = b"FORGELMK";
const VERSION: u32 = 1;
/// Images begin at multiples of this.
const ALIGNMENT: usize = 8;
/// zstd's strongest without a larger window than old decoders take.
const LEVEL: i32 = 19;

/// Where an image lies in the unpacked archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) n_bytes: usize,
}

/// Puts images with their names behind each other: `FORGELMK`; u32 version; u32 number of images;
/// for each the length (u32) of its name, the name, the length (u64) of the image; then the images.
/// Numbers are little endian.
pub(super) fn assemble(images: &[(String, Vec<u8>)]) -> (Vec<u8>, Vec<Place>) {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(u32::try_from(images.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (name, image) in images {
        bytes.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((image.len() as u64).to_le_bytes());
    }
    let mut places = Vec::new();
    for (_, image) in images {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        places.push(Place { offset: bytes.len(), n_bytes: image.len() });
        bytes.extend(image);
    }
    (bytes, places)
}

/// One zstd frame with the length and a checksum of what is in it.
pub(super) fn pack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|e| e.to_string())?;
    compressor.include_checksum(true).map_err(|e| e.to_string())?;
    compressor.include_contentsize(true).map_err(|e| e.to_string())?;
    compressor.compress(bytes).map_err(|e| e.to_string())
}

/// What `pack` packed.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    zstd::stream::decode_all(packed).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::{Place, assemble, pack, unpack};

    #[test]
    fn an_archive_has_names_lengths_and_aligned_images() {
        let images = [("a".to_owned(), vec![1; 3]), ("bc".to_owned(), vec![2; 9])];
        let (bytes, places) = assemble(&images);
        // 16 bytes of head, 4 + 1 + 8 and 4 + 2 + 8 of entries: 43, so that images begin at 48
        assert_eq!(places, [Place { offset: 48, n_bytes: 3 }, Place { offset: 56, n_bytes: 9 }]);
        assert_eq!(&bytes[..16], b"FORGELMK\x01\0\0\0\x02\0\0\0");
        assert_eq!(&bytes[16..29], b"\x01\0\0\0a\x03\0\0\0\0\0\0\0");
        assert_eq!(&bytes[48..51], [1; 3]);
        assert_eq!(&bytes[56..], [2; 9]);
        assert_eq!(unpack(&pack(&bytes).unwrap()).unwrap(), bytes);
    }

    /// kernels/cuda unpacks with another library than the one that packs here.
    #[test]
    fn the_library_that_the_program_has_unpacks_an_archive() {
        // a few megabytes in which matches are far apart, as of images
        let bytes: Vec<u8> = (0..4_000_000_u32)
            .map(|i| (i % 65_521).wrapping_mul(2_654_435_761).to_le_bytes()[3])
            .collect();
        let packed = pack(&bytes).unwrap();
        assert!(packed.len() < bytes.len() / 8, "{}", packed.len());
        let mut unpacked = Vec::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&packed[..]).unwrap();
        std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        assert!(unpacked == bytes);
    }
}
