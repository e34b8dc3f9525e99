use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cell::RefCell;

/// Letters and digits only, so that ids survive every URL, file name and shell.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

thread_local! {
    static REPEATED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// For simulations: the ids that [`opaque_id`] makes and the numbers of [`chance`] on this thread follow from `seed` from now on, so that a run can be
/// repeated. Secrets stay random.
pub fn repeat_ids(seed: u64) {
    REPEATED.set(Some(StdRng::seed_from_u64(seed)));
}

/// An id of `length` letters and digits, for example a room or media id.
pub fn opaque_id(length: usize) -> String {
    REPEATED.with_borrow_mut(|repeated| match repeated {
        Some(rng) => letters(rng, length),
        None => letters(&mut rand::rng(), length),
    })
}

/// A number from 0 to 1 that spreads what many do at the same time; repeated like ids in simulations.
pub fn chance() -> f64 {
    REPEATED.with_borrow_mut(|repeated| match repeated {
        Some(rng) => rng.random_range(0.0..1.0),
        None => rand::rng().random_range(0.0..1.0),
    })
}

fn letters(rng: &mut impl rand::Rng, length: usize) -> String {
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// A device id as people see it in their session list: ten capital letters.
pub fn device_id() -> String {
    let mut rng = rand::rng();
    (0..10).map(|_| char::from(ALPHABET[rng.random_range(0..26)])).collect()
}

/// A secret of 32 random bytes in URL-safe base64 behind `prefix`: access, refresh and registration tokens.
pub fn secret_token(prefix: &str) -> String {
    let bytes: [u8; 32] = rand::rng().random();
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}
