//! How a scenario is run in each world.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use vellum_rt::Class;
use vellum_rt::native::{self, Config};
use vellum_rt::sim::{SimConfig, World};

pub type Main = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Virtual time that a scenario may take.
const LIMIT: Duration = Duration::from_secs(600);
const SEEDS: u64 = 25;

pub fn main<F: Future<Output = ()> + 'static>(f: impl FnOnce() -> F + Send + 'static) -> Main {
    Box::new(move || Box::pin(f()))
}

pub fn native() -> Config {
    Config::default()
}

#[cfg(feature = "glommio")]
pub fn glommio() -> Config {
    Config { executor: native::Executor::Glommio, ..Config::default() }
}

pub fn kernel_one(config: Config, scenario: Main) {
    native::block_on_with(config, scenario()).unwrap();
}

pub fn kernel_two(config: Config, pair: (Main, Main)) {
    let other = native::spawn_thread_with("second", None, config.clone(), pair.1).unwrap();
    native::block_on_with(config, (pair.0)()).unwrap();
    other.join().unwrap();
}

pub fn sim_one(scenario: impl Fn() -> Main) {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut world = World::new(seed, SimConfig::default());
        let node = world.add_node();
        let reactor = world.add_reactor(node);
        world.block_on(reactor, LIMIT, scenario()()).unwrap_or_else(|| panic!("seed {seed}: not done in time"));
    }
}

pub fn sim_two(pair: impl Fn() -> (Main, Main)) {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut world = World::new(seed, SimConfig::default());
        let node = world.add_node();
        let (first, second) = (world.add_reactor(node), world.add_reactor(node));
        let pair = pair();
        let other = world.enter(second, || (pair.1)());
        let other = world.spawn(second, Class::Request, "second", other);
        let one = world.enter(first, || (pair.0)());
        world.block_on(first, LIMIT, one).unwrap_or_else(|| panic!("seed {seed}: not done in time"));
        assert!(world.run_until(|| other.is_finished(), LIMIT), "seed {seed}: the second is not done in time");
    }
}

macro_rules! conformance {
    ($($kind:ident: $module:ident::{$($name:ident),* $(,)?},)*) => {
        $($($crate::worlds::conformance!(@ $kind $module $name);)*)*
    };
    (@ one $module:ident $name:ident) => {
        mod $name {
            #[test]
            fn native() {
                $crate::worlds::kernel_one($crate::worlds::native(), $crate::worlds::main($crate::$module::$name));
            }
            #[cfg(feature = "glommio")]
            #[test]
            fn glommio() {
                $crate::worlds::kernel_one($crate::worlds::glommio(), $crate::worlds::main($crate::$module::$name));
            }
            #[test]
            fn sim() {
                $crate::worlds::sim_one(|| $crate::worlds::main($crate::$module::$name));
            }
        }
    };
    (@ two $module:ident $name:ident) => {
        mod $name {
            #[test]
            fn native() {
                $crate::worlds::kernel_two($crate::worlds::native(), $crate::$module::$name());
            }
            #[cfg(feature = "glommio")]
            #[test]
            fn glommio() {
                $crate::worlds::kernel_two($crate::worlds::glommio(), $crate::$module::$name());
            }
            #[test]
            fn sim() {
                $crate::worlds::sim_two($crate::$module::$name);
            }
        }
    };
}
pub(crate) use conformance;
