//! How many ICMP errors a worker may send.

use crate::time::Instant;

/// ICMP errors of one worker in a second: RFC 1812 section 4.3.2.8 asks for a limit, and Linux
/// has allowed 1,000 a second (`icmp_msgs_per_sec`) for a decade.
pub const ERRORS_PER_SECOND_MAX: u32 = 1_000;

/// Counts the errors of the current second.
#[derive(Debug, Default)]
pub(super) struct ErrorBudget {
    second: u32,
    used: u32,
}

impl ErrorBudget {
    /// Takes one from the budget; `false` when it is used up.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.second != now.second() {
            *self = Self {
                second: now.second(),
                used: 0,
            };
        }
        self.used += 1;
        self.used <= ERRORS_PER_SECOND_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_ends_and_returns_with_the_next_second() {
        let mut budget = ErrorBudget::default();
        let allowed = (0..5_000)
            .filter(|_| budget.take(Instant::from_millis(7_500)))
            .count();
        assert_eq!(allowed, ERRORS_PER_SECOND_MAX as usize);
        assert!(budget.take(Instant::from_millis(8_000)));
    }
}
