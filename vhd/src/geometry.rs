//! Cylinders, heads and sectors of a footer, for systems that still ask.

/// Four bytes of the footer: cylinders `u16`, heads `u8`, sectors per track `u8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// At most 65,535.
    pub cylinders: u16,
    /// At most 16 where it was computed.
    pub heads: u8,
    /// Per track.
    pub sectors: u8,
}

impl Geometry {
    /// What the specification's appendix computes for a size in bytes, rounded up to sectors.
    #[must_use]
    pub fn of(size: u64) -> Self {
        const SECTORS_MAX: u64 = 65_535 * 16 * 255;
        let total = size.div_ceil(512).min(SECTORS_MAX);
        let (mut sectors, mut heads) = (17, (total / 17).div_ceil(1024).max(4));
        let mut tracks = total / 17;
        if total >= 65_535 * 16 * 63 {
            (sectors, heads, tracks) = (255, 16, total / 255);
        } else {
            if tracks >= heads.saturating_mul(1024) || heads > 16 {
                (sectors, heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= heads.saturating_mul(1024) {
                (sectors, heads, tracks) = (63, 16, total / 63);
            }
        }
        let cylinders = tracks.checked_div(heads).unwrap_or(0);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    /// The sectors that it can name.
    #[must_use]
    pub fn total(self) -> u64 {
        u64::from(self.cylinders).saturating_mul(self.cylinder())
    }

    /// The sectors of one cylinder.
    #[must_use]
    pub fn cylinder(self) -> u64 {
        u64::from(self.heads).saturating_mul(u64::from(self.sectors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_geometry_is_that_of_the_specification() {
        let geometry = |cylinders, heads, sectors| Geometry { cylinders, heads, sectors };
        assert_eq!(Geometry::of(20 << 20), geometry(602, 4, 17));
        assert_eq!(Geometry::of(64 << 20), geometry(963, 8, 17));
        assert_eq!(Geometry::of(16_000 * 17 * 512), geometry(1000, 16, 17));
        assert_eq!(Geometry::of(16_384 * 17 * 512), geometry(561, 16, 31));
        assert_eq!(Geometry::of(400_000 * 512), geometry(806, 16, 31));
        assert_eq!(Geometry::of(1 << 30), geometry(2080, 16, 63));
        assert_eq!(Geometry::of(2040 << 30), geometry(65_535, 16, 255));
    }

    proptest! {
        #[test]
        fn a_geometry_never_names_more_than_there_is(size in 0..3_u64 << 40) {
            let geometry = Geometry::of(size);
            prop_assert!(geometry.total() <= size.div_ceil(512));
            prop_assert!(geometry.heads <= 16);
        }
    }
}
