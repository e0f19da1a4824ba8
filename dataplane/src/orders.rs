//! What the control side has the workers do: each command is acknowledged before it returns.

use crossbeam::channel::bounded;

use crate::command::{Command, Order};
use crate::{ACKNOWLEDGE_MAX, Dataplane, Error};

impl Dataplane {
    /// Gives one worker a command and waits until it is done.
    pub(crate) fn order_one(&self, worker: usize, command: Command) -> Result<(), Error> {
        let (done, answer) = bounded(1);
        let handle = self.workers.get(worker).ok_or(Error::Silent)?;
        handle
            .orders
            .send(Order { command, done })
            .map_err(|_| Error::Silent)?;
        let _ = self.shared.wakers[worker].wake();
        match answer.recv_timeout(ACKNOWLEDGE_MAX) {
            Ok(outcome) => outcome.map_err(Error::Refused),
            Err(_) => Err(Error::Silent),
        }
    }

    /// Gives each worker a command and waits until all are done; a refusal is returned.
    pub(crate) fn order_all(&self, mut command: impl FnMut(usize) -> Command) -> Result<(), Error> {
        self.order_many(&[()], |worker, ()| command(worker))
    }

    /// Gives each worker a command for each subject, by one wake-up, and waits until all are done; a
    /// refusal is returned.
    pub(crate) fn order_many<T>(
        &self,
        subjects: &[T],
        mut command: impl FnMut(usize, &T) -> Command,
    ) -> Result<(), Error> {
        let (done, answers) = bounded(self.workers.len() * subjects.len());
        for (index, worker) in self.workers.iter().enumerate() {
            for subject in subjects {
                let order = Order {
                    command: command(index, subject),
                    done: done.clone(),
                };
                worker.orders.send(order).map_err(|_| Error::Silent)?;
            }
            let _ = self.shared.wakers[index].wake();
        }
        let mut outcome = Ok(());
        for _ in 0..self.workers.len() * subjects.len() {
            match answers.recv_timeout(ACKNOWLEDGE_MAX) {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => outcome = Err(Error::Refused(refusal)),
                Err(_) => return Err(Error::Silent),
            }
        }
        outcome
    }
}
