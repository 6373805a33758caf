//! Why a configuration is not read.

use std::path::PathBuf;

use super::{MAX_DEPTH, MAX_INCLUDE_DEPTH, MAX_INCLUDES, MAX_SIZE, MAX_VARIABLE_DEPTH};
use crate::conf::tree::Origin;

/// A configuration that can't be read: the place, and the fault. The text never holds a value.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {fault}")]
pub struct ConfError {
    /// The file and the line of the fault. For a file that can't be read, the place of its `include`.
    pub origin: Origin,
    /// What is wrong.
    pub fault: Fault,
}

/// What a construct ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// A quote, `"` or `'`.
    Quote(char),
    /// `}` of a block.
    Brace,
    /// `]` of an array.
    Bracket,
    /// `)` on a line of its own.
    Block,
}

impl std::fmt::Display for Closing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Quote(quote) => write!(formatter, "a closing {quote}"),
            Self::Brace => formatter.write_str("a closing }"),
            Self::Bracket => formatter.write_str("a closing ]"),
            Self::Block => formatter.write_str("a ) on a line of its own"),
        }
    }
}

/// What is wrong with a configuration, and what to write instead.
///
/// Some of these texts are errors to nats-server too. nats-server accepts the others and gives them a meaning that
/// hardly anybody expects, or that differs between its versions. The agent refuses both kinds.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A NUL character, or `\x00`. nats-server takes a NUL for the end of the text in some places.
    #[error("a NUL character; remove it")]
    Nul,
    /// The text begins with U+FEFF. nats-server takes it for a part of the first name.
    #[error(
        "the file begins with a byte order mark, which nats-server takes for a part of the first name; save the file without it"
    )]
    ByteOrderMark,
    /// The bytes are not UTF-8. The digest of such a text differs between builds of nats-server.
    #[error("the file is not UTF-8 at this line; save the file as UTF-8")]
    NotUtf8,
    /// The escapes of a string give bytes that are not UTF-8.
    #[error("the \\x escapes of this string give no UTF-8; write the characters themselves")]
    EscapesNotUtf8,
    /// All files together are larger than [`MAX_SIZE`].
    #[error(
        "the configuration with all its includes and variables is larger than {MAX_SIZE} bytes; remove settings \
         that nats-server doesn't need"
    )]
    TooLarge,
    /// Maps and arrays nest deeper than [`MAX_DEPTH`].
    #[error("blocks and arrays nest deeper than {MAX_DEPTH}; remove a level")]
    TooDeep,
    /// A name begins with a character that no name may begin with.
    #[error("{0:?} stands where a setting's name is expected; remove it, or write the name in double quotes")]
    NameExpected(char),
    /// A name without quotes contains a character that looks like the end of the name. nats-server takes the character
    /// for a part of the name.
    #[error(
        "{0:?} is a part of the name for nats-server; write a blank before the character, or the name in double quotes"
    )]
    InName(char),
    /// A quoted name that is empty, or has a backslash or a line end. nats-server undoes no escapes in names.
    #[error(
        "a quoted name that is empty or has a backslash or a line end; nats-server knows no escapes in names, so write a plain name"
    )]
    QuotedName,
    /// A name without a value. nats-server stores the next value, or the block around it, under this name.
    #[error(
        "a name without a value, which makes nats-server store another value under this name; write a value or remove the name"
    )]
    NameWithoutValue,
    /// A `}` without a `{`. nats-server ignores such a brace.
    #[error("a }} without its {{; remove it, or write the {{")]
    UnopenedBrace,
    /// The text ends within a construct. The file may be half-written.
    #[error(
        "the text ends before {0}, as a half-written file does; complete the file, and write a file under another \
         name before you rename it"
    )]
    Unclosed(Closing),
    /// A `)` is the last character of the text. nats-server makes it a part of the value.
    #[error(
        "the text ends directly after the ), which nats-server makes a part of the value; end the file with a line feed"
    )]
    BlockAtEnd,
    /// A line of a `( … )` looks like its end and is none: blanks or a carriage return stand beside the `)`.
    #[error(
        "blanks or a carriage return beside a ), so nats-server does not end the text here; write the ) alone on its line, which ends with a line feed"
    )]
    BlockEndNotAlone,
    /// A single `/`. nats-server ignores it or takes it for a separator.
    #[error("a single /; write // before a comment, or the value in double quotes")]
    Slash,
    /// Something follows a value on its line.
    #[error("text after a value on its line; end the value with a comma or a new line, or write it in double quotes")]
    AfterValue,
    /// Something follows an array's value.
    #[error("neither a comma nor ] after a value of an array; write one of them")]
    AfterArrayValue,
    /// A comma without a value before it.
    #[error("a comma where a value is expected; remove it")]
    Comma,
    /// The line ends, or a terminator stands, where a value is expected. nats-server reads an empty string or refuses.
    #[error("no value; write a value on the line of its name, \"\" for an empty string")]
    ValueExpected,
    /// An unquoted value begins with a character that is never meant as a part of it.
    #[error("a value that begins with {0:?}; remove it, or write the value in double quotes")]
    ValueBegins(char),
    /// An unquoted value contains a quote, a control character or a blank other than space and tab.
    #[error("{0:?} within a value that is not quoted; write the whole value in quotes")]
    InValue(char),
    /// A backslash before a character that makes no escape.
    #[error(
        "a \\ that begins no escape; nats-server knows \\t, \\n, \\r, \\\", \\\\ and \\x with two digits, so write \\\\ for a backslash"
    )]
    Escape,
    /// A `-` without a digit after it, a fraction without digits, or a date that is not complete.
    #[error(
        "a value that begins like a number or a date and is none; write a string in double quotes, a date as 2006-01-02T15:04:05Z"
    )]
    Number,
    /// A number that is too large for its type, perhaps because of its unit. nats-server then computes another number.
    #[error("a number that is too large with its unit; write a smaller number")]
    NumberTooLarge,
    /// A unit such as `kbb`. nats-server accepts it and stores no value.
    #[error("an unknown unit of a number; write k, m, g, t, p or e, or one of these with b, i or ib")]
    Unit,
    /// A digit after a number's unit: an error up to nats-server 2.15.0, a string later.
    #[error(
        "a digit after the unit of a number, which versions of nats-server read differently; write the value in double quotes"
    )]
    DigitAfterUnit,
    /// `]` directly after a number. nats-server takes both for the beginning of a string.
    #[error(
        "a number directly before ], which nats-server reads as a string; write a blank or a new line before the ]"
    )]
    NumberBeforeBracket,
    /// A digit other than 0 to 9. nats-server takes it for a digit, and can't convert it.
    #[error("a digit other than 0 to 9; write 0 to 9, or the value in double quotes")]
    ForeignDigit,
    /// An `include` without a plain path, or a keyword `include` with characters outside ASCII.
    #[error("an include without a plain path; write include \"FILE\", with a path from the directory of this file")]
    IncludePath,
    /// The path of an include has a wildcard. nats-server includes one file by its exact name.
    #[error(
        "an include of a pattern, and nats-server includes a single file by its name; write one include for each file"
    )]
    Glob,
    /// An include in a value of the environment.
    #[error("an include within a variable of the environment; write the include in a file")]
    IncludeInEnvironment,
    /// An included file is not there.
    #[error(
        "the included file {} is not there; correct its path: even a path with a leading / starts at the directory \
         of this file", .0.display()
    )]
    Missing(PathBuf),
    /// An included file can't be read.
    #[error("could not read the included file {}: {source}; correct it or remove the include", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file includes itself, perhaps by way of others.
    #[error("{} includes itself, directly or by way of other files; remove this include", .0.display())]
    IncludeCycle(PathBuf),
    /// Includes nest deeper than [`MAX_INCLUDE_DEPTH`], or there are more than [`MAX_INCLUDES`].
    #[error(
        "more than {MAX_INCLUDES} includes, or includes that nest deeper than {MAX_INCLUDE_DEPTH}; put the settings into fewer files"
    )]
    TooManyIncludes,
    /// A variable is defined neither in the text before it nor in the environment.
    #[error(
        "the variable ${0} is defined nowhere; define it in the file of nats.environment_file in agent.toml, or in the agent's environment"
    )]
    Undefined(String),
    /// A `$` before a text that is no variable's name. The text may be a secret, so the message hides the text.
    #[error("a value that begins with $ and names no variable; write a text in quotes, a variable as $NAME")]
    NotAVariable,
    /// A variable of the environment refers to itself, perhaps by way of others.
    #[error("the variable ${0} of the environment refers to itself; give the variable a value")]
    VariableCycle(String),
    /// Variables of the environment refer to one another, deeper than [`MAX_VARIABLE_DEPTH`].
    #[error("more than {MAX_VARIABLE_DEPTH} variables of the environment refer to one another; give ${0} a value")]
    TooManyVariables(String),
    /// The value of a variable of the environment is no single value.
    #[error(
        "could not read the environment's ${name} as a value of nats-server's language: {fault}; quote a text within the variable: '\"TEXT\"'"
    )]
    Environment {
        /// The variable's name.
        name: String,
        /// What is wrong with its value.
        fault: Box<Fault>,
    },
    /// A variable refers to a setting. Such a setting has no effect up to nats-server 2.12.5, and has its effect later.
    #[error(
        "${0} refers to a setting, which then has no effect up to nats-server 2.12.5; write the value in both places, \
         or give the variable a name of its own"
    )]
    SettingAsVariable(String),
    /// A block with variables of its own is used within an array. Versions up to 2.12.5 read it differently.
    #[error(
        "${0} is a block with variables of its own, which versions of nats-server read differently within an array; write the block in its place"
    )]
    BlockAsVariable(String),
}

impl Fault {
    /// The fault at a place.
    pub(super) fn at(self, origin: Origin) -> ConfError {
        ConfError { origin, fault: self }
    }
}
