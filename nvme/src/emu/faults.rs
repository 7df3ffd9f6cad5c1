//! What the controller may do wrong. Rules are tried in order for each command; the first that applies decides.

use vellum_base::prng::Prng;

use crate::spec::Status;

/// What goes wrong with one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Not done, and answered so.
    Status(Status),
    /// Done, and never answered.
    LoseCompletion,
    /// Neither done nor answered.
    Lose,
    /// Done and answered after this many turns of its queue.
    Late { turns: u32 },
    /// Done and answered after up to this many turns: what comes later overtakes it.
    Reorder { max_turns: u32 },
    /// Done, and its completion written with the phase of the pass before.
    WrongPhase,
    /// Done and answered; then a completion for a command that nobody gave.
    UnknownCid,
    /// Done, and answered twice.
    Duplicate,
    /// Not done; a completion of random bytes.
    Scribble,
    /// Done and answered, as if it came from another submission queue.
    WrongQueue,
    /// CSTS.CFS: no command is done any more until a reset.
    Fatal,
    /// The controller resets itself: CSTS.RDY falls, queues and commands are gone.
    Reset,
    /// The function leaves the bus.
    Vanish,
    /// What an admin command answers (its data, its result) is random.
    Garble,
}

/// Which commands a rule is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    Io,
    IoOpcode(u8),
    Admin,
    AdminOpcode(u8),
}

#[derive(Clone, Copy, Debug)]
pub struct FaultRule {
    pub when: When,
    /// Commands that pass unharmed first.
    pub skip: u32,
    /// How often it strikes.
    pub times: u32,
    /// Strikes one in so many commands.
    pub one_in: u32,
    pub fault: Fault,
}

impl FaultRule {
    /// Strikes the next such command, once.
    pub fn once(when: When, fault: Fault) -> FaultRule {
        FaultRule { when, skip: 0, times: 1, one_in: 1, fault }
    }

    /// Strikes at random, for ever.
    pub fn one_in(when: When, one_in: u32, fault: Fault) -> FaultRule {
        FaultRule { when, skip: 0, times: u32::MAX, one_in, fault }
    }

    fn matches(&self, admin: bool, opcode: u8) -> bool {
        match self.when {
            When::Io => !admin,
            When::IoOpcode(only) => !admin && opcode == only,
            When::Admin => admin,
            When::AdminOpcode(only) => admin && opcode == only,
        }
    }
}

pub(super) struct Faults {
    rules: Vec<FaultRule>,
    pub prng: Prng,
}

impl Faults {
    pub fn new(seed: u64, rules: Vec<FaultRule>) -> Faults {
        Faults { rules, prng: Prng::new(seed) }
    }

    pub fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn next(&mut self, admin: bool, opcode: u8) -> Option<Fault> {
        for rule in self.rules.iter_mut().filter(|rule| rule.times > 0 && rule.matches(admin, opcode)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if self.prng.one_in(u64::from(rule.one_in.max(1))) {
                rule.times -= u32::from(rule.times != u32::MAX);
                return Some(rule.fault);
            }
        }
        None
    }
}
