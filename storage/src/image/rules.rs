//! The policy rules of images, in Glance's names. What an image's target says is made by `rest::aim`.

use api::Rule;

macro_rules! rules {
    ($($name:literal $check:expr),* $(,)?) => { &[$(Rule { name: $name, check: $check, about: "" }),*] };
}

const ADMIN: &str = "role:admin";
const MEMBER: &str = "role:admin or (role:member and project_id:%(project_id)s)";
const READER: &str = "role:admin or (role:reader and project_id:%(project_id)s)";
const SEEN: &str = "role:admin or (role:reader and (project_id:%(project_id)s or project_id:%(member_id)s or 'public':%(visibility)s or 'community':%(visibility)s))";
const DOWNLOADED: &str = "role:admin or (role:member and (project_id:%(project_id)s or project_id:%(member_id)s or 'public':%(visibility)s or 'community':%(visibility)s))";
const SHARED: &str =
    "role:admin or (role:reader and (project_id:%(project_id)s or project_id:%(member_id)s))";

pub const RULES: &[Rule] = rules! {
    "add_image" "role:admin or (role:member and project_id:%(project_id)s and project_id:%(owner)s)",
    "delete_image" MEMBER,
    "get_image" SEEN,
    "get_images" READER,
    "modify_image" MEMBER,
    "publicize_image" ADMIN,
    "communitize_image" MEMBER,
    "download_image" DOWNLOADED,
    "upload_image" MEMBER,
    "add_member" MEMBER,
    "delete_member" MEMBER,
    "get_member" SHARED,
    "get_members" SHARED,
    "modify_member" "role:admin or (role:member and project_id:%(member_id)s)",
    "deactivate" MEMBER,
    "reactivate" MEMBER,
    "get_task" READER,
    "tasks_api_access" ADMIN,
};
