//! One suite for every world: what the runtime seam promises holds natively, on glommio's executor (with the feature
//! `glommio`) and in the simulation alike.
//!
//! A scenario is an async function on one reactor, or a pair of them on two. The macros at the end make a test of each
//! in each world; the simulated ones run with several seeds, and also under a hostile configuration where they must.

mod channels;
mod classes;
mod net;
mod tasks;
mod timers;
mod worlds;

worlds::conformance! {
    one: tasks::{
        a_spawned_task_is_joined, a_cancelled_task_is_dropped_and_says_so, a_task_may_cancel_itself,
        a_dropped_handle_detaches, ten_thousand_tasks_come_and_go, a_wake_during_a_poll_is_not_lost,
        dropped_tasks_run_their_destructors,
    },
    one: timers::{
        sleeps_end_in_order_and_not_early, a_timeout_cuts_a_future_off, a_dropped_timer_leaves_nothing,
        a_poller_runs_until_it_is_dropped, a_waker_is_woken_later,
    },
    one: classes::{
        a_computation_that_yields_does_not_hold_requests_up, a_stall_is_recorded_with_its_task,
        time_is_accounted_to_classes,
    },
    one: net::{
        a_tcp_stream_echoes, a_unix_stream_echoes_and_knows_its_peer, a_large_transfer_arrives_whole_and_in_order,
        a_closed_stream_ends, a_shutdown_ends_both_sides, a_refused_connection_is_an_error,
        a_cancelled_receive_gives_its_memory_back_later, datagrams_carry_their_sender,
    },
    one: channels::{
        notify_wakes_one_or_all, an_event_lets_everyone_pass, a_semaphore_serves_in_order,
        a_mutex_is_held_across_awaits, readers_share_and_writers_do_not, a_oneshot_delivers_or_closes,
        a_local_channel_is_bounded,
    },
    two: channels::{
        messages_cross_in_order, a_full_channel_holds_its_senders, a_gone_receiver_is_told,
        a_waker_works_from_another_reactor,
    },
}
