//! The function `strftime_now`: C's `strftime` at the present time, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

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

/// C's `strftime` in UTC for the conversions chat templates use.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (n_days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(n_days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(n_days % 7) as usize]);
    let mut output = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => output.push_str(&year.to_string()),
            Some('y') => output.push_str(&format!("{:02}", year % 100)),
            Some('m') => output.push_str(&format!("{month:02}")),
            Some('d') => output.push_str(&format!("{day:02}")),
            Some('B') => output.push_str(month_name),
            Some('b') => output.push_str(&month_name[..3]),
            Some('A') => output.push_str(day_name),
            Some('a') => output.push_str(&day_name[..3]),
            Some('H') => output.push_str(&format!("{:02}", second / 3600)),
            Some('M') => output.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => output.push_str(&format!("{:02}", second % 60)),
            Some('%') => output.push('%'),
            other => {
                let message = format!("strftime_now: %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert!(strftime("%Q", at(0)).is_err());
    }
}
