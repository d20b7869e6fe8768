//! `device list` and `device remove`.

use tavi_enrol::DeviceId;
use tavi_enrol::admin::{DeviceList, DeviceRow};
use tavi_fleet::Client;

use crate::args::Page;
use crate::output::{Failure, Output, more};

pub async fn list(client: &Client, page: Page, output: &Output) -> Result<(), Failure> {
    let list = match page.query() {
        Some(query) => client.devices_page(&query).await?,
        None => client.devices().await?,
    };
    output.show(&list, table)
}

pub async fn remove(client: &Client, id: DeviceId, output: &Output) -> Result<(), Failure> {
    let removed = client.remove_device(id).await?;
    output.show(&removed, |_| format!("Removed device {id}. Its sessions end now and it can not log in again."))
}

fn table(list: &DeviceList) -> String {
    if list.devices.is_empty() {
        return "There are no devices yet. Add one: tavi-fleet device add --name NAME".into();
    }
    let rows: Vec<_> = list.devices.iter().map(row).collect();
    format!("{:36}  {:11}  NAME\n{}{}", "ID", "STATE", rows.join("\n"), more(list.next.as_deref()))
}

fn row(device: &DeviceRow) -> String {
    let name = device.name.as_ref().map_or("", |name| name.as_str());
    format!("{}  {:11}  {name}", device.id, device.state)
}
