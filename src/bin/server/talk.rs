//! What a server says on stderr: a line for each thing that a person wants to know, and everything
//! else if `RUST_LOG` asks for it.

use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// The target of what a person wants to know.
const NEWS: &str = "thrifty::news";

/// The name under which the program was started.
pub(crate) fn program() -> String {
    let path = std::env::args_os().next().map(std::path::PathBuf::from);
    let name =
        path.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "thrifty".into())
}

/// News as plain lines; the rest as `tracing` formats it.
struct Lines(Format);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() != NEWS {
            return self.0.format_event(context, writer, event);
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        let prefix = if *event.metadata().level() == Level::ERROR { "error: " } else { "" };
        writeln!(writer, "{prefix}{}", message.0)
    }
}

/// Starts talking.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("warn"));
    let news = format!("{NEWS}=info").parse();
    let filter = match news {
        Ok(news) => filter.add_directive(news),
        Err(_) => filter,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .event_format(Lines(Format::default()))
        .init();
}
