//! The native twin: the same with tokio, on one thread, with a `broadcast` channel for each topic.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::task::LocalSet;

/// Messages that wait for one, as in Airlock.
const WAITING: usize = 256;

type Topics = Rc<RefCell<HashMap<String, Sender<Arc<str>>>>>;

/// Until the process ends.
pub(crate) fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("listening on {}", listener.local_addr()?);
        let topics = Topics::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let topics = Rc::clone(&topics);
            tokio::task::spawn_local(async move {
                // The client has gone.
                let _ = talk(stream, topics).await;
            });
        }
    })
}

async fn talk(stream: TcpStream, topics: Topics) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"hello\n").await?;
    let mut hears: Option<Receiver<Arc<str>>> = None;
    loop {
        let came = {
            let (mut line, mut message) = (pin!(lines.next_line()), pin!(next(&mut hears)));
            poll_fn(|context| {
                if let Poll::Ready(line) = line.as_mut().poll(context) {
                    return Poll::Ready(Came::Line(line));
                }
                message.as_mut().poll(context).map(Came::Message)
            })
            .await
        };
        match came {
            Came::Line(line) => {
                let Some(line) = line? else {
                    return Ok(());
                };
                let mut words = line.splitn(3, ' ');
                let (verb, topic) = (words.next(), words.next().unwrap_or_default());
                match (verb, words.next()) {
                    (Some("hear"), None) => {
                        let mut topics = topics.borrow_mut();
                        let topic = topics.entry(topic.to_owned());
                        let sender = topic.or_insert_with(|| broadcast::channel(WAITING).0);
                        hears = Some(sender.subscribe());
                    }
                    (Some("say"), Some(body)) => {
                        if let Some(sender) = topics.borrow().get(topic) {
                            // Nobody may be there.
                            let _ = sender.send(format!("{topic}: {body}\n").into());
                        }
                    }
                    _ => anyhow::bail!("what is {line:?}?"),
                }
                writer.write_all(b"ok\n").await?;
            }
            Came::Message(message) => {
                let mut text = message?.to_string();
                // Those that wait already leave in the same write.
                while let Some(Ok(more)) = hears.as_mut().map(Receiver::try_recv) {
                    text.push_str(&more);
                }
                writer.write_all(text.as_bytes()).await?;
            }
        }
    }
}

/// What a connection waits for.
enum Came {
    Line(io::Result<Option<String>>),
    Message(Result<Arc<str>>),
}

async fn next(hears: &mut Option<Receiver<Arc<str>>>) -> Result<Arc<str>> {
    match hears {
        Some(hears) => Ok(hears.recv().await?),
        None => std::future::pending().await,
    }
}
