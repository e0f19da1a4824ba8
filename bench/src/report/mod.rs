//! Results for people and for other programs: tables, lines of values, pages.

mod choice;
pub mod csv;
pub mod html;
pub mod markdown;
mod plot;
mod svg;
pub mod table;
