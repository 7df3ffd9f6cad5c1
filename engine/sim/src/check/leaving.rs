//! U: who says farewell is let go, once or more often [U2, U3]; what is not let go ends the run as a liveness violation.

use vellum_server::Fact as ServerFact;

use super::Out;

#[derive(Default)]
pub struct Leaving {
    farewells: u64,
}

impl Leaving {
    pub fn server(&mut self, fact: &ServerFact, out: &mut Out) {
        if let ServerFact::Farewell { term, rid } = fact {
            self.farewells += 1;
            let name = out.name(*rid);
            out.story.say(format!("{name} says farewell to term {term}"));
        }
    }
}
