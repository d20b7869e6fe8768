//! `device list` and `device remove`.

use tavi_enrol::DeviceId;
use tavi_enrol::admin::{DeviceList, DeviceRow};
use tavi_fleet::Client;

use crate::output::{Failure, Output};

pub async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    output.show(&client.devices().await?, table)
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
    format!("{:36}  {:11}  NAME\n{}", "ID", "STATE", rows.join("\n"))
}

fn row(device: &DeviceRow) -> String {
    let name = device.name.as_ref().map_or("", |name| name.as_str());
    format!("{}  {:11}  {name}", device.id, device.state)
}
