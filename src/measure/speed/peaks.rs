//! Peak rates of devices by their makers' data sheets: an upper limit of every measurement.

/// Peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Part of the adapter's name.
    pub name: &'static str,
    /// Memory bandwidth in 1e9 bytes per second.
    pub memory: f64,
    /// f32 operations outside matrix units, in 1e12 per second.
    pub f32: f64,
    /// f16 operations outside matrix units, in 1e12 per second; 0: the sheet does not say.
    pub f16: f64,
    /// Dense f16 matrix operations with f32 sums, in 1e12 per second; 0: the sheet does not say.
    pub matrix: f64,
}

/// Arithmetic above the sheet's by this factor is an error: sheets count the typical boost clock, and cards run above it.
pub const CLOCK_MARGIN: f64 = 1.15;

/// Memory above the sheet's by this factor is an error: its clock is fixed, but a user may have raised it a little.
pub const MEMORY_MARGIN: f64 = 1.03;

const fn peak(name: &'static str, memory: f64, f32: f64, f16: f64, matrix: f64) -> Peak {
    Peak { name, memory, f32, f16, matrix }
}

/// As NVIDIA, AMD and Apple publish them, written down from memory: check a row against the maker's page before
/// trusting an excess.
#[rustfmt::skip]
static PEAKS: &[Peak] = &[
    peak("NVIDIA H200", 4800.0, 66.9, 133.8, 989.4),
    peak("NVIDIA H100 80GB HBM3", 3352.0, 66.9, 133.8, 989.4),
    peak("NVIDIA H100 PCIe", 2039.0, 51.2, 102.4, 756.4),
    peak("NVIDIA A100-SXM4-80GB", 2039.0, 19.5, 78.0, 312.0),
    peak("NVIDIA A100-SXM4-40GB", 1555.0, 19.5, 78.0, 312.0),
    peak("NVIDIA A100-PCIE-40GB", 1555.0, 19.5, 78.0, 312.0),
    peak("NVIDIA L40S", 864.0, 91.6, 91.6, 362.0),
    peak("NVIDIA L4", 300.0, 30.3, 30.3, 121.0),
    peak("GeForce RTX 5090", 1792.0, 104.8, 104.8, 209.5),
    peak("GeForce RTX 4090", 1008.0, 82.6, 82.6, 165.2),
    peak("GeForce RTX 4080 SUPER", 736.3, 52.2, 52.2, 104.4),
    peak("GeForce RTX 4080", 716.8, 48.7, 48.7, 97.5),
    peak("GeForce RTX 4070", 504.2, 29.1, 29.1, 58.3),
    peak("GeForce RTX 4060", 272.0, 15.1, 15.1, 30.2),
    peak("GeForce RTX 3090", 936.2, 35.6, 35.6, 71.2),
    peak("GeForce RTX 3070", 448.0, 20.3, 20.3, 40.6),
    peak("GeForce RTX 3060", 360.0, 12.7, 12.7, 25.5),
    peak("Radeon RX 7900 XTX", 960.0, 61.4, 122.8, 122.8),
    peak("Radeon RX 6800 XT", 512.0, 20.7, 41.5, 0.0),
    peak("Apple M1", 68.3, 2.6, 0.0, 0.0),
    peak("Apple M1 Pro", 200.0, 5.2, 0.0, 0.0),
    peak("Apple M1 Max", 400.0, 10.4, 0.0, 0.0),
    peak("Apple M2", 100.0, 3.6, 0.0, 0.0),
    peak("Apple M2 Max", 400.0, 13.6, 0.0, 0.0),
];

/// Words after a name that make it another product.
const OTHERS: &[&str] = &["laptop", "max-q", "ti", "super", "pro", "max", "ultra", "gre", "d"];

/// The data sheet of an adapter, by its name; `None` where it is not known for sure.
pub fn of(adapter: &str) -> Option<&'static Peak> {
    let adapter = adapter.to_lowercase();
    let fits = |peak: &&Peak| {
        let Some(at) = adapter.find(&peak.name.to_lowercase()) else {
            return false;
        };
        let rest = &adapter[at + peak.name.len()..];
        let whole = !rest.starts_with(|c: char| c.is_alphanumeric());
        let next = rest.split_whitespace().next().unwrap_or_default();
        let other = OTHERS.contains(&next) || adapter.contains("laptop");
        whole && !other
    };
    PEAKS.iter().find(fits)
}
