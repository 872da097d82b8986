//! The function `strftime_now`: C's `strftime` at the present time, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

use crate::calendar::civil_date;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// C's `strftime` in UTC and the C locale, for all that does not count weeks. As in glibc, `%-d` is without
/// a zero in front and `%_d` has a blank there.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let time = Time::new(now);
    let mut output = String::new();
    let mut rest = format;
    while let Some((text, conversion)) = rest.split_once('%') {
        output.push_str(text);
        let padding = conversion.chars().next().filter(|c| "-_0".contains(*c));
        let mut chars = conversion[padding.map_or(0, char::len_utf8)..].chars();
        let kind = chars.next().unwrap_or(' ');
        match time.converted(kind) {
            Some(Converted::Text(text)) => output.push_str(&text),
            Some(Converted::Number(number, width)) => output.push_str(&match padding {
                Some('-') => number.to_string(),
                Some('_') => format!("{number:width$}"),
                _ => format!("{number:0width$}"),
            }),
            Some(Converted::PaddedByBlanks(number)) => output.push_str(&match padding {
                Some('-') => number.to_string(),
                Some('0') => format!("{number:02}"),
                _ => format!("{number:2}"),
            }),
            None => {
                let message = format!("strftime_now: %{kind} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        rest = chars.as_str();
    }
    output.push_str(rest);
    Ok(output)
}

/// What a conversion stands for.
enum Converted {
    Text(String),
    /// With zeros in front up to a width.
    Number(u64, usize),
    /// Of two digits, with a blank in front.
    PaddedByBlanks(u64),
}

struct Time {
    seconds: u64,
    /// Since 1970-01-01.
    n_days: u64,
    year: u64,
    /// From 1.
    month: usize,
    /// From 1.
    day: u64,
}

impl Time {
    fn new(now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let n_days = seconds / 86_400;
        let (year, month, day) = civil_date(n_days);
        Time {
            seconds,
            n_days,
            year,
            month,
            day,
        }
    }

    fn converted(&self, kind: char) -> Option<Converted> {
        let number = |number, width| Some(Converted::Number(number, width));
        let text = |text: &str| Some(Converted::Text(text.to_owned()));
        let composed = |format: &str| {
            let composed = strftime(format, UNIX_EPOCH + Duration::from_secs(self.seconds));
            composed.ok().map(Converted::Text)
        };
        let second = self.seconds % 86_400;
        let hour = second / 3600;
        // Of twelve hours, the last one is first.
        let hour_of_half = (hour + 11) % 12 + 1;
        let (month_name, day_name) = (MONTHS[self.month - 1], DAYS[(self.n_days % 7) as usize]);
        let day_of_week = (self.n_days + 4) % 7;
        match kind {
            'Y' => number(self.year, 1),
            'C' => number(self.year / 100, 2),
            'y' => number(self.year % 100, 2),
            'm' => number(self.month as u64, 2),
            'd' => number(self.day, 2),
            'e' => Some(Converted::PaddedByBlanks(self.day)),
            'j' => number(self.n_days - days_before(self.year) + 1, 3),
            'H' => number(hour, 2),
            'k' => Some(Converted::PaddedByBlanks(hour)),
            'I' => number(hour_of_half, 2),
            'l' => Some(Converted::PaddedByBlanks(hour_of_half)),
            'M' => number(second / 60 % 60, 2),
            'S' => number(second % 60, 2),
            'f' => number(0, 6),
            's' => number(self.seconds, 1),
            'u' => number((day_of_week + 6) % 7 + 1, 1),
            'w' => number(day_of_week, 1),
            'B' => text(month_name),
            'b' | 'h' => text(&month_name[..3]),
            'A' => text(day_name),
            'a' => text(&day_name[..3]),
            'p' => text(if hour < 12 { "AM" } else { "PM" }),
            'P' => text(if hour < 12 { "am" } else { "pm" }),
            'Z' | 'z' => text(""),
            'n' => text("\n"),
            't' => text("\t"),
            '%' => text("%"),
            'c' => composed("%a %b %e %H:%M:%S %Y"),
            'D' | 'x' => composed("%m/%d/%y"),
            'F' => composed("%Y-%m-%d"),
            'r' => composed("%I:%M:%S %p"),
            'R' => composed("%H:%M"),
            'T' | 'X' => composed("%H:%M:%S"),
            _ => None,
        }
    }
}

/// Days from 1970-01-01 to the first of `year`.
fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let show = |seconds| strftime("%Y-%m-%d %H:%M:%S %A %d %b %y %B %a %%", at(seconds)).expect("known");
        // date -u -d @N '+%Y-%m-%d %H:%M:%S %A %d %b %y %B %a %%'
        assert_eq!(show(0), "1970-01-01 00:00:00 Thursday 01 Jan 70 January Thu %");
        assert_eq!(
            show(951_782_399),
            "2000-02-28 23:59:59 Monday 28 Feb 00 February Mon %"
        );
        assert_eq!(
            show(951_782_400),
            "2000-02-29 00:00:00 Tuesday 29 Feb 00 February Tue %"
        );
        assert_eq!(
            show(4_107_542_400),
            "2100-03-01 00:00:00 Monday 01 Mar 00 March Mon %"
        );
        let rest = |seconds| {
            let format =
                "%-d|%e|%_m|%j|%C|%I:%M %p|%l %P|%u %w|%F %T|%D %R|%r|%c|%x %X|%h%n%t%s|%-H %0e|%k|%f|%Z%z.";
            strftime(format, at(seconds)).expect("known")
        };
        // datetime.fromtimestamp(N, timezone.utc).replace(tzinfo=None).strftime(format) in Python on Linux
        assert_eq!(
            rest(951_782_399),
            "28|28| 2|059|20|11:59 PM|11 pm|1 1|2000-02-28 23:59:59|02/28/00 23:59|11:59:59 PM|\
             Mon Feb 28 23:59:59 2000|02/28/00 23:59:59|Feb\n\t951782399|23 28|23|000000|."
        );
        assert_eq!(
            rest(1_772_323_200),
            "1| 1| 3|060|20|12:00 AM|12 am|7 0|2026-03-01 00:00:00|03/01/26 00:00|12:00:00 AM|\
             Sun Mar  1 00:00:00 2026|03/01/26 00:00:00|Mar\n\t1772323200|0 01| 0|000000|."
        );
        for unknown in ["%Q", "%", "%-", "%V"] {
            assert!(strftime(unknown, at(0)).is_err(), "{unknown}");
        }
    }
}
